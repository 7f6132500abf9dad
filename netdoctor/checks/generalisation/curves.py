"""Losses on held-out data over the steps: where they turned, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netdoctor.recording import Array, Recording, SourceLine, median
from netdoctor.trend import significance

LOGGED = ("val_loss", "valid_loss", "validation_loss", "eval_loss", "test_loss", "dev_loss")
SIGNIFICANT = 2.33  # one-sided 1 %
FEWEST = 5  # losses from the best on: fewer can hardly rise significantly


@dataclass(frozen=True, slots=True)
class Curve:
    """One series of held-out losses, and the line that evaluates where it is known."""

    steps: NDArray[np.int64]
    losses: Array
    source: SourceLine | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """The best loss of a series: its index and `level` (the median around it), and the levels at start and end."""

    best: int
    level: float
    start: float
    end: float


def curves(recording: Recording) -> Iterator[Curve]:
    """What the script's evaluations gave, and what was logged by hand."""
    for evaluation in recording.evaluations:
        if len(evaluation.losses):
            at = SourceLine(evaluation.file, evaluation.line, evaluation.text) if evaluation.file else None
            yield Curve(evaluation.steps, evaluation.losses, at)
    for name, series in recording.scalars.items():
        if name.lower().replace("/", "_").replace(" ", "_") in LOGGED:
            yield Curve(series.steps, series.values)


def far_worse(curve: Curve, recording: Recording) -> bool:
    """Whether the held-out loss ends a fifth above its best and at twice the training loss, or more."""
    training = recording.loss
    if training is None or len(curve.losses) < 3 or not np.isfinite(curve.losses).all():
        return False
    end, trained = median(curve.losses[-2:]), median(training.values[-max(2, len(training.values) // 10) :])
    return bool(trained >= 0 and end >= 1.2 * float(curve.losses.min()) and end >= 2 * trained)


def generalises(recording: Recording, constant: float, share: float) -> bool:
    """Whether a held-out loss fell by this share below its start, and below that of a constant prediction (NaN: not known)."""
    for curve in curves(recording):
        if len(curve.losses) > 1 and np.isfinite(curve.losses).all():
            start = min(float(curve.losses[0]), constant)  # NaN leaves the first one
            if start > 0 and median(curve.losses[-2:]) <= (1 - share) * start:
                return True
    return False


def rising(losses: Array) -> Turn | None:
    """The turn of a series that rises significantly after its best; None where it does not.

    The best is taken of medians of three, so that one lucky evaluation is none; the trend is that of all that follow.
    """
    smooth = np.array([median(losses[max(0, i - 1) : i + 2]) for i in range(len(losses))])
    best = int(np.argmin(smooth))
    after = losses[best:]
    if len(after) < FEWEST or significance(after) < SIGNIFICANT:
        return None
    end = median(losses[-max(2, len(after) // 4) :])
    return Turn(best, float(smooth[best]), float(losses[0]), end)
