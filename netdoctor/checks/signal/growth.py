"""Scales that grow from step to step: without an end, or by one jump that lasts."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from netdoctor.recording import Array, Layer, Recording, Series, Stat, median, middle

SAMPLES = 8  # one value in each eighth of the window
BEFORE = 3  # steps in the running median, at least; a divergence may be over after ten
AFTER = 5  # steps that a jump must last, so that one spike does not count


@dataclass(frozen=True, slots=True)
class Jump:
    """A jump of a scalar: its step, the median of all steps before, the level from then on."""

    step: int
    before: float
    level: float


def over_steps(recording: Recording, layer: Layer) -> float:
    """How far a layer's scale grew over max(start, 1), 0 unless it still grows.

    A vanished signal may recover freely, which is why the start counts as 1 at least.
    """
    track = recording.of_layer(layer, Stat.RMS)
    if track is None:
        return 0.0
    values = finite_part(track.values)
    return float(values[-1] / max(values[0], 1.0)) if values.size >= SAMPLES and grows(values) else 0.0


def grows(values: Array) -> bool:
    """Whether the median of each eighth in the last half lies above that of the eighth before."""
    eighth = max(1, values.size // 8)
    levels = [middle(part) for part in values[-4 * eighth :].reshape(4, eighth).tolist()]
    return all(one < other for one, other in pairwise(levels))


def jump(series: Series, limit: float, ends: bool) -> Jump | None:
    """The first jump over `limit` times the running median that lasts to the end; None when there is none.

    `ends` tells that the run became non-finite: then the last value alone may be the jump.
    """
    values = finite_part(series.values)
    sizes, last = values.tolist(), float(values[-1]) if values.size else 0.0
    earlier = sorted(sizes[:BEFORE])  # in order, so that the running median is at hand
    for index in range(BEFORE, len(sizes) - (0 if ends else AFTER - 1)):
        half = index // 2
        usual = earlier[half] if index % 2 else (earlier[half - 1] + earlier[half]) / 2
        if 0 < limit * usual < min(sizes[index], last):
            level = median(values[index:])
            if level > limit * usual and last >= level / 2:
                return Jump(int(series.steps[index]), usual, level)
        bisect.insort(earlier, sizes[index])
    return None


def finite_part(values: Array) -> Array:
    """The values before the first that is not finite."""
    return values[: int(np.argmin(np.append(np.isfinite(values), False)))]
