"""A softmax over the samples of the batch instead of over the classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, Comparison, comparisons, dimension, line, maker, place
from netdoctor.checks.loss.lines import over_classes
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

SOFTMAXES = frozenset({"softmax", "log_softmax", "softmin"})
LOGARITHMS = frozenset({"log", "clamp", "add", "clip"})


@dataclass(frozen=True)
class WrongDimSoftmax(Check):
    """The softmax runs over the batch dimension, so the samples of a batch compete with each other.

    What it is: `softmax(dim=0)` of scores of shape (samples, classes), or a softmax without `dim`, which takes
    dimension 0 for three-dimensional input.
    Why it hurts: the probabilities of a sample do not add up to 1, and depend on which other samples are in the batch.
    How it is decided: on the captured step. What the loss is given was made by a softmax over dimension 0 (a logarithm
    or reshape may come after it), and that dimension is as long as the target, whose entries are samples.
    When it stays silent: attention over time in sequence-first layout; a softmax over parameters or over a set; vectors,
    which have no other dimension; batches of one sample; a softmax before cross_entropy, which should not be there at
    all (double-softmax).
    Fix: dim=-1, or dim=1 for images.
    Sources: PyTorch's warning on the implicit dimension; Full Stack Deep Learning's list of bugs (peers.md).
    """

    name = "wrong-dim-softmax"
    explains = NO_LEARNING | NO_SIGNAL | {"cross-sample-leakage", "softmax-then-log"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in comparisons(recording):
            softmax = _softmax(comparison)
            if softmax is not None:
                yield self._finding(recording, comparison, softmax)

    def _finding(self, recording: Recording, comparison: Comparison, softmax: Operation) -> Finding:
        source = line(recording, softmax)
        shape = comparison.graph.values[softmax.inputs[0]].shape
        given = "dim" in softmax.attributes or "1" in softmax.attributes
        how = "over dimension 0" if given else "without dim, so over dimension 0,"
        code = over_classes("" if source is None else source.text)
        return Finding(
            self.name,
            f"{softmax.name} in {place(softmax)} runs {how} of {shape}: the batch",
            Severity.ERROR,
            f"The loss has {shape[0]} samples, and dimension 0 of the scores is these samples: they compete with each "
            "other, and the probabilities of one sample do not add up to 1.",
            Location.at(source, softmax.module or None, softmax.name, step=0),
            (Evidence("dimension of the softmax", 0.0, "<", 1.0), Evidence("samples of the batch", shape[0], ">", 1.0)),
            (Fix("softmax-over-classes", "Take it over the classes.", code, Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def _softmax(comparison: Comparison) -> Operation | None:
    """The softmax over the batch that made this prediction, if there is one."""
    graph, found = comparison.graph, comparison.maker
    while found is not None and found.name in LOGARITHMS and found.inputs:
        found = maker(graph, found.inputs[0])
    if found is None or found.name not in SOFTMAXES or not comparison.prediction.requires_grad:
        return None
    direct = comparison.operation.name == CROSS_ENTROPY
    return found if not direct and _over_batch(graph, found, comparison.target.shape) else None


def _over_batch(graph: StepGraph, softmax: Operation, target: tuple[int, ...]) -> bool:
    shape = graph.values[softmax.inputs[0]].shape
    dim = dimension(softmax, 0 if len(shape) in (0, 1, 3) else 1)  # torch's own choice where none is given
    samples = shape[0] if shape else 0
    return len(shape) > 1 and dim in (0, -len(shape)) and samples > 1 and target[:1] == (samples,) and shape[1] != samples
