"""A cosine similarity that is summed over a dimension along which one side is the same throughout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.broadcast_axes import compared, features, reduced, same_along
from netdoctor.checks.loss.comparisons import graphs, place
from netdoctor.checks.loss.normalised_products import of_normalised, off_axis
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.numerics.rewriting import Edit, rewrite
from netdoctor.checks.signal.outcome import hurt
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording, SourceLine
from netdoctor.trend import judge

NAME = "cosine_similarity"
TREATMENT = "similarity-along-features"


@dataclass(frozen=True)
class WrongDimSimilarity(Check):
    """The cosine similarity runs along a dimension in which one side is only repeated, and not along the features.

    What it is: `F.cosine_similarity(a[:, None], b[None])`, or `nn.CosineSimilarity()`, without `dim`: the default is
    dimension 1, which holds the other samples here.
    Why it hurts: the result is (samples, features) in place of (samples, samples), which nobody notices where both are
    as many. A side that is the same all along the sum drops out of its own direction: of each of its numbers only the
    sign is left, and the rest is a statistic of the other side.
    Or `F.normalize` of (samples, views, features), which takes dimension 1 as well: products of its vectors are no cosines.
    How it is decided: on the captured step. The loss depends on a cosine similarity over a dimension along which one
    side has size 1 (or was expanded from it), while both vary along another one, which is not the first. Or, a warning
    where training does not work: it depends on a product of two normalised tensors that sums over another dimension
    than one of them was normalised along.
    When it stays silent: pairs of vectors (samples, features), sequences with dim=-1, feature maps along their
    channels, comparisons with prototypes along the features; similarities that no loss depends on; normalised tensors in a
    training that works, or whose sizes leave a doubt.
    Fix: dim=-1, tried on a copy.
    Sources: PyTorch's documentation (torch.nn.functional.cosine_similarity: dim=1 by default, operands are broadcast).
    """

    name = "wrong-dim-similarity"
    explains = NO_LEARNING | NO_SIGNAL | {"cross-sample-leakage", "overfitting"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        seen: set[tuple[str, int]] = set()
        for graph in graphs(recording):
            for operation in graph.named_behind({NAME}):
                if (operation.file, operation.line) not in seen and at_fault(graph, operation):
                    seen.add((operation.file, operation.line))
                    yield self._finding(graph, operation)
            for operation, taken, summed in off_axis(graph) if hurt(judge(recording)) else ():
                if (operation.file, operation.line) not in seen:
                    seen.add((operation.file, operation.line))
                    yield of_normalised(self.name, TREATMENT, graph, operation, taken, summed)

    def _finding(self, graph: StepGraph, operation: Operation) -> Finding:
        summed, right = reduced(graph, operation) or 0, features(graph, operation) or -1
        whole = compared(graph, operation)
        given = "" if {"dim", "2"} & operation.attributes.keys() else "without dim, so "
        shapes = " and ".join(str(graph.values[i].shape) for i in operation.inputs[:2])
        source = SourceLine(operation.file, operation.line, operation.text) if operation.file else None
        return Finding(
            self.name,
            f"{NAME} in {place(operation)} runs {given}over dimension {len(whole) + summed} of {shapes}: "
            "one side is the same along it",
            Severity.ERROR,
            f"Both sides vary along dimension {len(whole) + right}, their features, of which there are {whole[right]}. "
            "Along the one that is summed over one side is only repeated: of its numbers no more than the signs count, "
            f"and the result has shape {graph.values[operation.outputs[0]].shape}.",
            Location.at(source, operation.module or None, NAME, step=0),
            (
                Evidence("different numbers along the sum, of one side", 1.0, "<", 2.0),
                Evidence("numbers along the features, of both", whole[right], ">", 1.0),
            ),
            (Fix(TREATMENT, "Take it along the features.", _code(operation, right), Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def at_fault(graph: StepGraph, operation: Operation) -> bool:
    """Whether one side is the same all along the dimension that is summed over, while both vary along the features."""
    summed = reduced(graph, operation)
    if summed is None or not operation.outputs or features(graph, operation) is None:
        return False
    return any(same_along(graph, value, summed) for value in operation.inputs[:2])


def _code(operation: Operation, dim: int) -> str:
    """The user's line with the right dimension; where the module was built, for a module."""
    if operation.module_type == "CosineSimilarity":
        return f"nn.CosineSimilarity(dim={dim})"
    own = None if "2" in operation.attributes else rewrite(operation.text, NAME, Edit(keyword=f"dim={dim}"))
    return own or f"F.cosine_similarity(a, b, dim={dim})"
