"""Class numbers that were taken from tables with several labels per sample: the first of each is kept, the others are lost."""

from __future__ import annotations

from dataclasses import replace

from netdoctor.checks.loss.comparisons import Comparison, maker, width
from netdoctor.checks.loss.lines import renamed, without
from netdoctor.graph import Value
from netdoctor.recording import SourceLine

_PICKS = frozenset({"argmax", "max"})  # which give the place of the first of several ones


def taken_from(comparison: Comparison) -> Value | None:
    """The table (samples, classes) of zeros and ones whose places are the targets; None where they are made otherwise."""
    graph, target = comparison.graph, comparison.target
    made = maker(graph, target.index)
    if made is None or made.name not in _PICKS or not made.inputs:
        return None
    table = graph.values[made.inputs[0]]
    fits = len(table.shape) == 2 and table.shape[1] == width(comparison.prediction) and table.shape[0] in target.shape
    return table if fits and table.integral and (table.low, table.high) == (0, 1) else None


def rewritten(source: SourceLine | None, names: dict[str, str], cut: str) -> str:
    """The line with the names of losses replaced, and the operation `cut` taken out where the line holds it."""
    bare = without(source, cut) if cut else ""
    return renamed(replace(source, text=bare) if source is not None and bare else source, names)
