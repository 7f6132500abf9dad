"""A softmax over the samples of the batch instead of over the classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.class_axis import axis, beside_classes, downstream, samples
from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, graphs, line, place
from netdoctor.checks.loss.lines import over_classes
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

SOFTMAXES = frozenset({"softmax", "log_softmax", "softmin"})
MIXING = frozenset({"linear", "matmul", "mm", "bmm", "einsum", "conv1d", "conv2d", "baddbmm", "addmm"})


@dataclass(frozen=True)
class WrongDimSoftmax(Check):
    """The softmax runs over the batch, or over the positions, and not over the classes.

    What it is: `softmax(dim=0)` of scores of shape (samples, classes), or a softmax without `dim`, which takes
    dimension 0 for three-dimensional input.
    Why it hurts: the probabilities of a sample do not add up to 1, and depend on which other samples are in the batch.
    How it is decided: on the captured step. A softmax over dimension 0 of scores that are as many as the samples given
    to the model, and no other layer between it and the loss. Or one over a dimension that is not the last, of three or
    more, whose logarithm comes to nll_loss as (everything else, last dimension).
    When it stays silent: attention over time in sequence-first layout; a softmax over parameters or over a set; vectors,
    which have no other dimension; batches of one sample; a softmax before cross_entropy, which should not be there at
    all (double-softmax).
    Fix: dim=-1, or dim=1 for images.
    Sources: PyTorch's warning on the implicit dimension; Full Stack Deep Learning's list of bugs (peers.md).
    """

    name = "wrong-dim-softmax"
    explains = NO_LEARNING | NO_SIGNAL | {"cross-sample-leakage", "softmax-then-log"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        seen: set[tuple[int, str, str, int]] = set()
        for graph in graphs(recording):
            for operation in graph.named_behind(SOFTMAXES):
                if operation.identity not in seen and (_at_fault(graph, operation) or _beside(graph, operation)):
                    seen.add(operation.identity)
                    yield self._finding(recording, graph, operation)

    def _finding(self, recording: Recording, graph: StepGraph, softmax: Operation) -> Finding:
        source = line(recording, softmax)
        shape = graph.values[softmax.inputs[0]].shape
        code, dim = over_classes("" if source is None else source.text), axis(graph, softmax) % len(shape)
        batch = not dim and shape[0] == samples(graph)
        given = "dim" in softmax.attributes or "1" in softmax.attributes
        how = f"over dimension {dim}" if given else f"without dim, so over dimension {dim},"
        what = "the batch" if batch else f"the classes are in dimension {len(shape) - 1}"
        says = f"The loss has the classes in the last dimension. Here {shape[dim]} others compete with each other"
        if batch:
            says = f"The loss has {shape[0]} samples, and dimension 0 of the scores is these samples: they compete with each other"
        limit = 1.0 if batch else float(len(shape) - 1)
        several = Evidence("samples of the batch" if batch else "entries along it", shape[dim], ">", 1.0)
        return Finding(
            self.name,
            f"{softmax.name} in {place(softmax)} runs {how} of {shape}: {what}",
            Severity.ERROR,
            f"{says}, and the probabilities of one prediction do not add up to 1.",
            Location.at(source, softmax.module or None, softmax.name, step=0),
            (Evidence("dimension of the softmax", float(dim), "<", limit), several),
            (Fix("softmax-over-classes", "Take it over the classes.", code, Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def _at_fault(graph: StepGraph, softmax: Operation) -> bool:
    """Whether this is a softmax over the samples whose result goes into the loss without another layer in between."""
    if not softmax.inputs or not graph.values[softmax.inputs[0]].requires_grad:
        return False
    shape = graph.values[softmax.inputs[0]].shape
    dim = axis(graph, softmax)
    if len(shape) < 2 or dim not in (0, -len(shape)) or shape[0] < 2 or shape[1] in (1, shape[0]):
        return False
    ends = [operation.name for operation in downstream(graph, softmax)]
    return shape[0] == samples(graph) and not MIXING.intersection(ends) and CROSS_ENTROPY not in ends


def _beside(graph: StepGraph, softmax: Operation) -> bool:
    trained = bool(softmax.inputs) and graph.values[softmax.inputs[0]].requires_grad
    return trained and beside_classes(graph, softmax, axis(graph, softmax))
