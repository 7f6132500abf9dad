"""A view or reshape where a transposition was meant, so that samples are mixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.structure.axes import RESHAPING, code, moved
from netdoctor.checks.structure.flattened import crossed, finding, torn, torn_classes
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording


@dataclass(frozen=True)
class WrongReshape(Check):
    """A view or reshape moves a size to another place, which mixes samples (or positions) instead of swapping axes.

    What it is: `x.view(time, batch, features)` of a tensor of shape (batch, time, features); `hidden.view(batch, -1)` of
    the (directions, batch, units) of an LSTM; heads merged or split without a transposition. A view only cuts the same
    sequence of numbers at other places; swapping axes takes `transpose` or `permute`.
    Why it hurts: parts of different samples end up in one row. What belongs together is torn apart before the first
    layer, and no training can mend it.
    How it is decided: on the shapes of the captured step. An axis is lost in a view or reshape, and the result has one of
    the same size that reaches over the borders of the given axes; the loss depends on the result. Or a prediction
    (time, batch, ...) and its target (batch, time, ...) are both flattened, so that their lengths agree and their orders
    do not; or one with its classes in dimension 1 is laid out as rows of classes.
    When it stays silent: flattening, splitting and merging neighbouring axes (heads, patches, groups), transpose and
    permute, axes of size 1.
    Fix: transpose or permute.
    Sources: advice B-7; Karpathy's recipe (view and permute mixed up; backprop to chart dependencies).
    """

    name = "wrong-reshape"
    explains = NO_LEARNING | NO_SIGNAL | {"cross-sample-leakage", "causal-leak", "label-input-mismatch"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        told = [finding(self.name, found, recording) for found in crossed(recording)]
        told += [torn(self.name, found, recording) for found in torn_classes(recording)]
        if told:
            yield told[0]
            return
        seen: set[tuple[str, int]] = set()  # lines: a block that stands ten times in a net has one fault
        for graph in graphs(recording):
            for operation in graph.named_behind(RESHAPING):
                axes, place = _torn(graph, operation), (operation.file, operation.line)
                if axes is not None and place not in seen:
                    seen.add(place)
                    yield self._finding(recording, graph, operation, axes)

    def _finding(self, recording: Recording, graph: StepGraph, operation: Operation, axes: tuple[int, int]) -> Finding:
        given, made = graph.values[operation.inputs[0]].shape, graph.values[operation.outputs[0]].shape
        source = line(recording, operation)
        samples, low, high = 0 in axes, min(axes), max(axes)
        what = "numbers of different samples" if samples else "numbers of different positions and channels"
        return Finding(
            self.name,
            f"{operation.name} makes {made} of {given}: it mixes {'samples' if samples else 'positions'}",
            Severity.ERROR if samples else Severity.WARNING,
            f"A size is moved, but {operation.name} does not move numbers along with it, so each row now holds "
            f"{what}. Swapping axes takes transpose({low}, {high}).",
            Location.at(source, operation.module or None, operation.name, step=0),
            (Evidence(f"size of dimension {axes[1]} after {operation.name}", made[axes[1]], "=", given[axes[0]]),),
            (Fix("transpose", "Swap the axes.", code(source.text if source else "", given, made, axes), Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def _torn(graph: StepGraph, operation: Operation) -> tuple[int, int] | None:
    """The axis that a view or reshape tears apart, and the axis of the result that has its size; None for any other."""
    if not operation.inputs or not operation.outputs:
        return None
    return moved(graph.values[operation.inputs[0]].shape, graph.values[operation.outputs[0]].shape)
