"""A view or reshape where a transposition was meant, so that samples are mixed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

RESHAPING = frozenset({"view", "reshape"})


@dataclass(frozen=True)
class WrongReshape(Check):
    """A view or reshape swaps two sizes, which moves numbers to other samples (or positions) instead of swapping axes.

    What it is: `x.view(time, batch, features)` of a tensor of shape (batch, time, features). A view only cuts the same
    sequence of numbers at other places; swapping axes takes `transpose` or `permute`.
    Why it hurts: parts of different samples end up in one row. What belongs together is torn apart before the first
    layer, and no training can mend it.
    How it is decided: on the shapes of the captured step. A view or reshape gives the same sizes in another order, with
    the first two (batch and time) or the last two swapped, and the result is used behind it by a layer.
    When it stays silent: flattening, splitting and merging axes (heads, patches, groups), transpose and permute, axes of
    equal size, tensors that need no gradient and are no model input.
    Fix: transpose or permute.
    Sources: advice B-7; Karpathy's recipe (view and permute mixed up; backprop to chart dependencies).
    """

    name = "wrong-reshape"
    explains = NO_LEARNING | NO_SIGNAL | {"cross-sample-leakage", "causal-leak", "label-input-mismatch"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        seen: set[int] = set()
        for graph in graphs(recording):
            for operation in sorted(graph.loss_operations(), key=lambda o: o.index):
                axes = _swapped(graph, operation)
                if axes is not None and operation.index not in seen:
                    seen.add(operation.index)
                    yield self._finding(recording, graph, operation, axes)

    def _finding(self, recording: Recording, graph: StepGraph, operation: Operation, axes: tuple[int, int]) -> Finding:
        given, made = graph.values[operation.inputs[0]].shape, graph.values[operation.outputs[0]].shape
        source = line(recording, operation)
        samples = axes[0] == 0
        what = "numbers of different samples" if samples else "numbers of different positions and channels"
        return Finding(
            self.name,
            f"{operation.name} makes {made} of {given}: it mixes {'samples' if samples else 'positions'}",
            Severity.ERROR if samples else Severity.WARNING,
            f"The sizes are swapped, but {operation.name} does not move numbers along with them, so each row now holds "
            f"{what}. Swapping axes takes transpose({axes[0]}, {axes[1]}).",
            Location.at(source, operation.module or None, operation.name, step=0),
            (Evidence(f"size of dimension {axes[0]} after {operation.name}", made[axes[0]], "=", given[axes[1]]),),
            (Fix("transpose", "Swap the axes.", _code(source.text if source else "", axes), Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def _swapped(graph: StepGraph, operation: Operation) -> tuple[int, int] | None:
    """The two neighbouring axes whose sizes a view swaps, or None."""
    if operation.name not in RESHAPING or not operation.inputs or not operation.outputs:
        return None
    given, made = graph.values[operation.inputs[0]].shape, graph.values[operation.outputs[0]].shape
    moved = [axis for axis, (a, b) in enumerate(zip(given, made, strict=False)) if a != b]
    if len(given) != len(made) or len(moved) != 2 or len(given) < 3:
        return None
    first, second = moved
    neighbours = second == first + 1 and first in (0, len(given) - 2)
    swapped = given[first] == made[second] and given[second] == made[first]
    return (first, second) if neighbours and swapped and 1 not in (given[first], given[second]) else None


def _code(text: str, axes: tuple[int, int]) -> str:
    changed = re.sub(r"\.(?:view|reshape)\([^()]*(?:\([^()]*\)[^()]*)*\)", f".transpose({axes[0]}, {axes[1]})", text)
    return changed if changed != text else f"x = x.transpose({axes[0]}, {axes[1]})"
