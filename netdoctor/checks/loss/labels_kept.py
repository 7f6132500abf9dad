"""Class numbers that were taken from tables with several labels per sample: the first of each is kept, the others are lost."""

from __future__ import annotations

from dataclasses import replace

from netdoctor.checks.loss.comparisons import RESHAPES, Comparison, maker, width
from netdoctor.checks.loss.lines import renamed, without
from netdoctor.graph import StepGraph, Value
from netdoctor.recording import SourceLine

_PICKS = frozenset({"argmax", "max"})  # which give the place of the first of several ones


def taken_from(comparison: Comparison) -> Value | None:
    """The table (samples, classes) of zeros and ones whose places are the targets; None where they are made otherwise.

    The table has to be data: what a step makes anew, as `(tokens == asked).int()`, is a search for the first place.
    """
    graph, target = comparison.graph, comparison.target
    made = maker(graph, target.index)
    if made is None or made.name not in _PICKS or not made.inputs:
        return None
    table = graph.values[made.inputs[0]]
    fits = len(table.shape) == 2 and table.shape[1] == width(comparison.prediction) and table.shape[0] in target.shape
    binary = table.integral and (table.low, table.high) == (0, 1)
    return table if fits and binary and _is_data(graph, table) else None


def _is_data(graph: StepGraph, table: Value) -> bool:
    """Whether it came from outside of the step, or is a batch of a larger table."""
    made, samples = graph.producer(table.index), table.shape[0]
    while made is not None and made.name in RESHAPES and made.inputs:
        source = graph.values[made.inputs[0]]
        if source.shape and source.shape[0] > samples:
            return True
        made = graph.producer(source.index)
    return made is None


def rewritten(source: SourceLine | None, names: dict[str, str], cut: str) -> str:
    """The line with the names of losses replaced, and the operation `cut` taken out where the line holds it."""
    bare = without(source, cut) if cut else ""
    return renamed(replace(source, text=bare) if source is not None and bare else source, names)
