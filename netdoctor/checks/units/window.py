"""Which sampled steps speak for the present state of a unit, and which layer feeds it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from netdoctor.checks.units.hidden import entering, reads
from netdoctor.recording import Kind, Layer, Recording, Stat, Track
from netdoctor.trend import Trend

# What a layer that passes on next to nothing brings about.
STALLED = frozenset(
    {
        "vanishing-activations",
        "vanishing-gradients",
        "input-independent-output",
        "loss-not-decreasing",
        "cannot-overfit-tiny-batch",
        "learning-rate-too-low",
        "underfitting",
    }
)
LATE = 2 / 3  # the window is the last third of the run: what died and did not come back for so long stays dead


def finite_until(recording: Recording, trend: Trend) -> int:
    """The first step that no longer counts: from a NaN on all units look alike. The step after the last otherwise."""
    ends = [recording.steps + 1]
    if recording.origin is not None:
        ends.append(recording.origin.step)
    if trend.first_nonfinite is not None:
        ends.append(trend.first_nonfinite)
    return min(ends)


def late_start(steps: NDArray[np.int64], samples: NDArray[np.float64], fewest: int, enough: float) -> int | None:
    """Index of the first sampled step of the window, or None when the run is too short to judge.

    The window is the last third of the run, made longer until it has `fewest` sampled steps and `enough` samples per
    unit. Samples thin out by 1.1 per step, so a third of a long run holds four of them.
    """
    if len(steps) < fewest:
        return None
    start = min(int(steps.searchsorted(LATE * steps[-1])), len(steps) - fewest)
    if samples[start:].sum() >= enough:
        return start
    seen = np.flatnonzero(samples[::-1].cumsum()[::-1] >= enough)  # where a window with enough of them may begin
    return min(start, int(seen[-1])) if len(seen) else None


def before(track: Track, end: int) -> Track:
    """The part of a track before a step."""
    kept = int(track.steps.searchsorted(end))
    return Track(track.steps[:kept], track.values[:kept])


def feeder(recording: Recording, layer: Layer) -> Layer | None:
    """The weighted layer whose output the activation works on: the nearest one before it, across norms and dropout."""
    for earlier in reversed(recording.layers):
        if earlier.order >= layer.order or earlier.model != layer.model:
            continue
        if earlier.kind is Kind.LINEAR:
            return earlier
        if earlier.kind not in (Kind.NORM, Kind.DROPOUT, Kind.OTHER):
            return None
    return None


def input_of(recording: Recording, layer: Layer) -> Layer | None:
    """The weighted layer or norm directly before, when the activation is applied to its very output."""
    earlier = [x for x in recording.layers if x.order < layer.order and x.model == layer.model]
    if not earlier or earlier[-1].units != layer.units or earlier[-1].kind not in (Kind.LINEAR, Kind.NORM):
        return None
    return earlier[-1] if reads(recording, layer, earlier[-1]) else None


def entering_at(recording: Recording, layer: Layer, step: int) -> tuple[float, float]:
    """Mean and standard deviation of what goes into an activation; NaN when unknown.

    At the start from the captured graph, later from the weighted layer or norm directly before it.
    """
    if step == 0 and math.isfinite((known := entering(recording, layer))[0]):
        return known
    given = input_of(recording, layer)
    if given is None:
        return math.nan, math.nan
    return scale_of(recording, given, Stat.MEAN, step), scale_of(recording, given, Stat.STD, step)


def value_at(track: Track | None, step: int) -> float:
    """The last value of a scalar track up to a step; NaN when there is none."""
    if track is None or not (track.steps <= step).any():
        return float("nan")
    return float(track.values[track.steps <= step][-1])


def scale_of(recording: Recording, layer: Layer | None, stat: Stat, step: int) -> float:
    """A statistic of a layer's output at a step; NaN when unknown."""
    return float("nan") if layer is None else value_at(recording.of_layer(layer, stat), step)
