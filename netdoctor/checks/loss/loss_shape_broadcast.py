"""Prediction and target of the same size but different shapes, broadcast against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import LOSSES, graphs, line
from netdoctor.checks.loss.lines import squeezed
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph, Value
from netdoctor.recording import Recording

DIFFERENCES = frozenset({"sub", "rsub", "mul"})  # of a loss written by hand; the product weighs log-probabilities


@dataclass(frozen=True)
class LossShapeBroadcast(Check):
    """Prediction and target have equally many numbers but different shapes, so that each meets every other.

    What it is: an output of shape (N, 1) against a target of shape (N,) broadcasts to (N, N): every prediction is
    compared with the targets of all samples.
    Why it hurts: the loss is smallest when the model predicts the mean of the targets for every input, so that is what
    it learns. Nothing fails, and the loss falls a little.
    How it is decided: on the shapes of the captured step. In a loss function, or a difference or product behind the
    loss, two tensors of the same number of elements and different numbers of dimensions give a result with more
    elements.
    When it stays silent: equal shapes; scalars; weights per sample or per class, which have fewer elements; pairwise
    distances, whose operands were given the same number of dimensions on purpose.
    Fix: squeeze the prediction, or unsqueeze the target.
    Sources: PyTorch warns of it in mse_loss; Full Stack Deep Learning lists it among the most common bugs (peers.md).
    """

    name = "loss-shape-broadcast"
    explains = NO_LEARNING | NO_SIGNAL

    def judge(self, recording: Recording) -> Iterator[Finding]:
        seen: set[tuple[int, str, str, int]] = set()
        for graph in graphs(recording):
            for operation in graph.named_behind(DIFFERENCES | LOSSES):
                pair = _pair(graph, operation)
                if pair is not None and operation.identity not in seen:
                    seen.add(operation.identity)
                    yield self._finding(recording, graph, operation, *pair)

    def _finding(
        self, recording: Recording, graph: StepGraph, operation: Operation, prediction: Value, other: Value
    ) -> Finding:
        source = line(recording, operation)
        long, short = sorted((prediction.shape, other.shape), key=len, reverse=True)
        made = "×".join(map(str, _broadcast(long, short)))
        first = operation.inputs[0] == (prediction.index if prediction.shape == long else other.index)
        code = squeezed("" if source is None else source.text, operation.name, first)
        return Finding(
            self.name,
            f"prediction {prediction.shape} and target {other.shape} broadcast to {made} in {operation.name}",
            Severity.ERROR,
            f"Both hold {prod(long)} numbers, but {operation.name} makes {prod(_broadcast(long, short))} of them: each "
            "prediction is compared with every sample's target, and predicting the mean is the best that can be learned.",
            Location.at(source, operation.module or None, operation.name, step=0),
            (Evidence("numbers compared", prod(_broadcast(long, short)), ">", prod(long)),),
            (Fix("match-shapes", f"Make both {short}.", code or "prediction = prediction.squeeze(-1)", Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def _pair(graph: StepGraph, operation: Operation) -> tuple[Value, Value] | None:
    """The prediction and the other side, when they broadcast to more than either holds."""
    by_hand = operation.name in DIFFERENCES and len(operation.inputs) == 2
    if (not by_hand and operation.name not in LOSSES) or len(operation.inputs) < 2 or not operation.outputs:
        return None
    one, two = (graph.values[i] for i in operation.inputs[:2])
    if two.requires_grad and not one.requires_grad:
        one, two = two, one
    if not one.requires_grad or (by_hand and two.requires_grad) or two.origin in {"parameter", "buffer"}:
        return None
    if len(one.shape) == len(two.shape) or prod(one.shape) != prod(two.shape) or prod(one.shape) < 2:
        return None
    return (one, two) if prod(_broadcast(one.shape, two.shape)) > prod(one.shape) else None


def _broadcast(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(one), len(two))
    padded = [(1,) * (rank - len(shape)) + shape for shape in (one, two)]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))
