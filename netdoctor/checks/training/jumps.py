"""How much a loss jumps from step to step, and how many steps make the loss of their own batch larger."""

from __future__ import annotations

import math

import numpy as np

from netdoctor.recording import Arm, Recording

LATE = 24  # losses at least; else the last third of the run
CLEAR = 0.05  # of the batch's loss: a rise by less undoes nothing


def late_noise(recording: Recording) -> float:
    """Standard deviation from step to step over the level of the loss, late in the run; 0 where it is not known.

    The deviation is that of each loss from the mean of its neighbours, times sqrt(2/3) (Gasser, Sroka and
    Jennen-Steinmetz 1986): blind to a smooth trend.
    """
    series = recording.loss
    if series is None or series.values.size < LATE or not np.isfinite(series.values).all():
        return 0.0
    late = series.values[-max(LATE, series.values.size // 3) :]
    rest = late[1:-1] - (late[:-2] + late[2:]) / 2
    level = float(np.median(np.abs(late)))
    return float(rest.std()) * math.sqrt(2 / 3) / level if level > 0 else 0.0


def rising_steps(arm: Arm | None) -> tuple[float, int]:
    """(share, number) of an arm's later half of steps after which their own batch had a clearly larger loss."""
    if arm is None or arm.failure or "after" not in arm.curves:
        return 0.0, 0
    before, after = arm.losses, arm.curves["after"]
    half = len(after) // 2
    count = min(len(before), len(after)) - half
    if count <= 0:
        return 0.0, 0
    rises = after[half : half + count] > before[half : half + count] + CLEAR * np.abs(before[half : half + count])
    return float(rises.mean()), count


def late_level(arm: Arm | None) -> float:
    """The mean loss of an arm's last third of steps, each before it was taken; NaN when it did not run."""
    if arm is None or arm.failure or arm.losses.size < 3:
        return math.nan
    return float(arm.losses[-(arm.losses.size // 3) :].mean())
