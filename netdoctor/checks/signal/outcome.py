"""What the loss says about a suspicion: is training hurt, and in which words."""

from __future__ import annotations

import numpy as np

from netdoctor.recording import Recording
from netdoctor.trend import Trend

MOVED, WINDOW = 0.02, 5  # of the loss at the start; losses in a running median
STILL, SLOW = 0.15, 0.5  # of a run in which the loss stands still; of the loss, when less than that is lost in the end
LITTLE = 0.15  # a regression that only finds the mean of its target falls by 5 to 10 %; learning falls by far more


def hurt(trend: Trend) -> bool:
    """Whether training does not work: it fails, or falls by so little that a constant predictor would do."""
    return trend.failing or (trend.kind == "falls" and trend.drop < LITTLE)


def learns(trend: Trend) -> bool:
    """Whether training works well enough to make a suspicion harmless; False when that could not be told."""
    return trend.learning and not hurt(trend)


def stood(recording: Recording) -> float:
    """The share of the run, from its beginning, in which the loss did not fall by `MOVED`; 0 where there is none or it is short.

    Running medians of five keep one lucky batch from ending it.
    """
    series = recording.loss
    if (
        series is None
        or len(series.values) < WINDOW * 4
        or not np.isfinite(series.values).all()
        or series.values[0] <= 0
    ):
        return 0.0
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(series.values, WINDOW), axis=1)
    moved = np.flatnonzero(smooth <= (1 - MOVED) * smooth[0])
    return float(series.steps[moved[0]] / series.steps[-1]) if len(moved) else 1.0


def lost_its_beginning(recording: Recording, trend: Trend) -> bool:
    """Whether the loss of a training that learns stood still at first, for so long that little was learned in the end."""
    return trend.drop < SLOW and stood(recording) >= STILL


def words(trend: Trend) -> str:
    """What the loss does, as a sentence."""
    levels = f"{trend.start:.4g} at the start, {trend.end:.4g} at the end"
    if trend.kind == "non-finite":
        return f"The loss became non-finite at step {trend.first_nonfinite}."
    if trend.failing:
        return f"The loss {'does not fall' if trend.kind == 'flat' else 'rises'}: {levels}."
    if hurt(trend):
        return f"The loss hardly falls: {levels}."
    if trend.learning:
        return f"Training goes on all the same: {levels}."
    return "Whether training suffers could not be told from the loss."
