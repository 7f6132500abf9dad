"""How the learning rate fell, and whether the loss was done falling by then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from netdoctor.recording import Array, Recording, Series
from netdoctor.trend import FALL_Z, judge_series

ALIVE = 0.1  # of the highest rate: above it the rate still trains at about its own pace
SHORT = 16  # losses in the time of a living rate: fewer have no trend, and nothing can have been learned
BRIEF = 0.25  # of the run: a rate that lived no longer than this had no time to show a slow fall over the noise


@dataclass(frozen=True, slots=True)
class Decay:
    """The highest rate and its last step; the steps from which it stays under a half, a tenth and the limit of that.

    From step `alive` to `tenth` it was above a tenth without a break; `last` is the last step of the run.
    """

    top: float
    top_step: int
    half: int
    tenth: int
    low: int
    last: int
    low_rate: float
    alive: int

    @property
    def left(self) -> float:
        """The share of the run, once the rate was alive, that was trained with next to none."""
        return (self.last - self.low) / max(1, self.last - self.alive)

    @property
    def factor(self) -> float:
        """By which the rate was multiplied per step, on average, until it was low."""
        return float((max(self.low_rate, 1e-300) / self.top) ** (1 / max(1, self.low - self.top_step)))


def decay(recording: Recording, limit: float) -> Decay | None:
    """The decay of the first group's rate to under `limit` of its highest value, for good; None when there is none."""
    series = recording.scalars.get("lr")
    if series is None or series.values.size < 2 or not np.isfinite(series.values).all():
        return None
    steps, rates = series.steps, series.values
    top = float(rates.max())
    if top <= 0 or rates[-1] >= limit * top:
        return None
    at = int(np.flatnonzero(rates >= top)[-1])
    half, tenth, low = (int(np.flatnonzero(rates >= share * top)[-1]) + 1 for share in (0.5, ALIVE, limit))
    asleep = np.flatnonzero(rates[:at] < ALIVE * top)  # a warm-up, or the end of an earlier cycle
    alive = int(asleep[-1]) + 1 if asleep.size else 0
    step = steps.tolist()
    return Decay(top, step[at], step[half], step[tenth], step[low], step[-1], float(rates[low]), step[alive])


@dataclass(frozen=True, slots=True)
class Loss:
    """Levels of the loss: at the start, when the rate came to nothing, at the end; and what more a living rate promised.

    `promised` is the fall that its last trend would have gone on to, over the rest of the run; infinite when the rate
    died before a trend could show.
    """

    start: float
    then: float
    end: float
    promised: float


def loss_of(series: Series, decay: Decay) -> Loss | None:
    """The loss beside a decay; None when a part is too short to have a level, or not finite."""
    alive = series.values[(series.steps >= decay.alive) & (series.steps < decay.tenth)]
    dead = series.values[series.steps >= decay.low]
    if dead.size < SHORT or not np.isfinite(series.values).all():
        return None
    fifth = max(2, dead.size // 5)
    start = float(np.median(series.values[: max(2, min(8, series.values.size // 20))]))
    then, end = float(np.median(dead[:fifth])), float(np.median(dead[-fifth:]))
    return Loss(start, then, end, _promised(alive, decay))


def _promised(alive: Array, decay: Decay) -> float:
    if alive.size < SHORT:
        return math.inf
    late = alive[alive.size // 2 :]
    third = max(1, late.size // 3)
    if judge_series(late, -math.inf).z > FALL_Z:
        brief = decay.tenth - decay.alive < BRIEF * (decay.last - decay.alive)
        return math.inf if brief else 0.0
    fall = float(np.median(late[:third]) - np.median(late[-third:]))
    per_step = fall / max(1.0, (decay.tenth - decay.alive) / 2 * 2 / 3)
    return per_step * (decay.last - decay.low)
