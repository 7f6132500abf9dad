"""Dropout with a high rate, or at a place where it does harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.loss.comparisons import LOSSES, RESHAPES, graphs, line, place
from netdoctor.checks.structure.eval_mode_in_training import DROPOUTS
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

SYMPTOMS = """
loss-not-decreasing cannot-overfit-tiny-batch underfitting noisy-gradients label-input-mismatch dead-relu unstable-loss
learning-rate-too-high learning-rate-too-low class-imbalance input-independent-output
"""
HEAD = RESHAPES | {"softmax", "log_softmax", "sigmoid", "logsigmoid"}
BEFORE_NORM = RESHAPES | {"relu", "leaky_relu", "gelu", "tanh", "silu", "elu", "max_pool2d", "avg_pool2d"}


@dataclass(frozen=True)
class DropoutTooHigh(Check):
    """Dropout drops most of a layer, or drops what the loss compares, or stands right before a BatchNorm.

    What it is: a rate above 0.6 (a keep probability taken for a drop probability, say), or a dropout after the layer
    that makes the predictions.
    Why it hurts: with p = 0.9 a tenth of the signal is left, scaled by ten: the gradient is mostly noise. Dropped
    predictions are zeros that the loss compares with the targets. Before a BatchNorm, its running variance is that of
    dropped values, and too large in evaluation mode.
    How it is decided: read from the captured step. On the output: a warning at any rate. Above 0.6: a warning where
    training does not work or leaves over half of a constant prediction's loss, else advice. Before a BatchNorm: advice.
    When it stays silent: 0.5 before a classifier; dropout on inputs, attention weights, hidden layers at usual rates;
    embeddings that are compared with each other (contrastive losses).
    Fix: 0.1 to 0.5 between hidden layers, none after the last one.
    Sources: Srivastava et al., Dropout, 2014 (section A.4); Li et al., Disharmony between Dropout and Batch
    Normalization, 2019; advice A8, A28.
    """

    name = "dropout-too-high"
    explains = frozenset(SYMPTOMS.split())

    rate: float = 0.6  # Srivastava et al. find 0.4 to 0.8 kept to be the plateau; 0.5 is what is in use

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found: dict[str, list[tuple[Operation, float]]] = {"output": [], "rate": [], "norm": []}
        for graph in graphs(recording)[:1]:
            for operation in graph.loss_operations()[::-1]:
                p = _rate(operation)
                if p > 0:
                    kind = self._kind(graph, operation, p)
                    found.get(kind, []).append((operation, p))
        for kind, those in found.items():
            if those:
                yield self._finding(recording, kind, those)

    def _kind(self, graph: StepGraph, operation: Operation, p: float) -> str:
        if graph.follow(operation, lambda o: o.name in LOSSES, HEAD) is not None:
            return "output"
        if p > self.rate:
            return "rate"
        before_norm = graph.follow(operation, lambda o: o.name == "batch_norm", BEFORE_NORM) is not None
        return "norm" if before_norm else ""

    def _finding(self, recording: Recording, kind: str, those: list[tuple[Operation, float]]) -> Finding:
        operation, p = max(those, key=lambda pair: pair[1])
        state = harm(recording)
        suffers = kind == "rate" and state.state in {State.HURT, State.SLOW}
        percent = f"{100 * p:.0f} %"
        title = {
            "output": f"dropout on the output: {percent} of the predictions are replaced by zeros",
            "rate": f"dropout drops {percent} of {place(operation)}",
            "norm": f"dropout right before a BatchNorm ({place(operation)}, p = {p:g})",
        }[kind]
        says = state.words if kind == "rate" else "In evaluation mode nothing is dropped, and the values differ."
        fix = {"output": "Drop it.", "rate": "Take a lower rate.", "norm": "Put it after the BatchNorm."}[kind]
        code = "" if kind == "norm" else "nn.Identity()" if kind == "output" else "nn.Dropout(0.3)"
        return Finding(
            self.name,
            title,
            Severity.WARNING if kind == "output" or suffers else Severity.ADVICE,
            says,
            Location.at(line(recording, operation), operation.module or None, operation.name, 0),
            (Evidence("dropout rate", p, ">", self.rate if kind == "rate" else 0.0),),
            (Fix("dropout-rate", fix, code, Reach.MODEL),),
            first_step=0,
            places=tuple(dict.fromkeys(place(o) for o, _ in those)),
        )


def _rate(operation: Operation) -> float:
    if operation.name not in DROPOUTS or not operation.attributes.get("training", operation.attributes.get("2", True)):
        return 0.0
    return float(operation.attributes.get("p", operation.attributes.get("1", 0.5)))
