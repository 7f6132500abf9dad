"""What two loss curves say about a treatment: cured, eased, no effect, worse, or that the trouble did not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netdoctor.finding import Verdict
from netdoctor.recording import Array
from netdoctor.trend import MIN_STEPS, Trend, judge_series

STUCK = 0.1  # of the loss lost: less is no training (learning-rate-too-high asks for the same)
GAIN = 0.2  # of the loss lost: what a cure must reach in a trial's steps
MARGIN = 2.0  # times what the control lost: a cure is not a matter of a little more
MUCH = 0.3  # of the loss lost: training, beyond doubt (learning-rate-too-high asks for the same)
KEPT = 0.25  # of the loss: a control that keeps more is far from done
NOTICED = 0.05  # of the loss: a smaller difference is no effect
AGREEING = 0.75  # of the paired steps: on the same batches most differences must have one sign
_FIRST = 3  # losses that the start is read from: few, as a good treatment makes them fall at once
APART = 10.0  # times: starting losses so far apart mean that the control's own start was the trouble
LASTS = 2.0  # times more steps until NaN or Inf: eased


@dataclass(frozen=True, slots=True)
class Scale:
    """What losses are compared with: the lowest that the loss can take, and that of the best constant prediction."""

    bound: float = 0.0
    chance: float | None = None


def scale_of(bound: float, chance: float | None, *curves: Sequence[float]) -> Scale:
    """The scale for these curves. An unknown bound is 0 for losses that are never negative, else well below the lowest."""
    values = np.concatenate([np.asarray(curve, dtype=np.float64) for curve in curves])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if math.isfinite(bound) and low >= bound - 1e-6 * (1 + abs(bound)):
        return Scale(bound, chance)
    return Scale(0.0 if low >= 0 else low - (high - low), chance)


def decide(
    control: Sequence[float], treated: Sequence[float], scale: Scale, only_finite: bool = False, built_in: bool = False
) -> Verdict | None:
    """The verdict on two arms that saw the same batches in the same order; None where they are too short.

    `only_finite`: the trouble is a NaN or Inf, so only a control that ends in one shows it. `built_in`: the trouble is a
    fact of the copy (parameters that nobody trains, say), so that the control has it whatever its loss does. Levels are
    medians of the last fifth. What an arm lost is told as a fraction of its start above the bound, where a start above
    the loss of a constant prediction does not count as progress.
    """
    one, other = np.asarray(control, dtype=np.float64), np.asarray(treated, dtype=np.float64)
    if _finite(one) and _finite(other):
        steps = min(one.size, other.size)
        one, other = one[:steps], other[:steps]
    if min(one.size if _finite(one) else MIN_STEPS, other.size if _finite(other) else MIN_STEPS) < MIN_STEPS:
        return None
    if not _finite(one):
        return _after_breakdown(one, other, scale)
    if not _finite(other):
        return Verdict.WORSE
    sick = not only_finite and (_trend(one, scale).failing or _lost(one, scale) < STUCK)
    if _is_cure(one, other, scale) and (sick or (not only_finite and _lags(one, other, scale))):
        return Verdict.CURED
    if built_in and _trains(other, scale) and _lost(other, scale) >= GAIN and _halved(one, other, scale):
        return Verdict.CURED
    if _better(one, other, scale):
        return Verdict.EASED
    if _better(other, one, scale):
        return Verdict.WORSE
    return Verdict.NO_EFFECT if sick or built_in else Verdict.NOT_REPRODUCED


def by_measure(control: float, treated: float, limit: float, losses: Verdict | None = None) -> Verdict | None:
    """The verdict where a number on both copies tells, which grows with the trouble; that of the losses where it is NaN.

    A copy with `limit` or less is free of the trouble. A number that is halved is an improvement. `losses` is what the
    losses of the same copies say: a treatment that makes them worse is no cure.
    """
    if math.isnan(control):
        return losses
    if control <= limit:
        return Verdict.NOT_REPRODUCED
    if treated <= limit:
        return Verdict.EASED if losses is Verdict.WORSE else Verdict.CURED
    if MARGIN * treated <= control:
        return Verdict.NO_EFFECT if losses is Verdict.WORSE else Verdict.EASED
    return Verdict.WORSE if treated >= MARGIN * control else Verdict.NO_EFFECT


def by_itself(before: bool | None, after: bool | None, losses: Sequence[float]) -> Verdict:
    """The verdict where the trouble itself was looked for in both copies: gone, and the treated one trains."""
    if before:
        return Verdict.NOT_REPRODUCED
    if not after:
        return Verdict.NO_EFFECT
    return Verdict.EASED if judge_series(losses).kind in {"rises", "non-finite"} else Verdict.CURED


def _after_breakdown(control: Array, treated: Array, scale: Scale) -> Verdict:
    if not _finite(treated):
        return Verdict.EASED if treated.size >= LASTS * control.size else Verdict.NO_EFFECT
    if treated.size <= control.size:
        return Verdict.NO_EFFECT  # it did not get as far as the control
    return Verdict.CURED if _trains(treated, scale) else Verdict.EASED


def goes_on(treated: Sequence[float], usual: float, scale: Scale) -> bool:
    """Whether a training that broke at its first step here stays, with the treatment, at the level it had reached before."""
    values = np.asarray(treated, dtype=np.float64)
    if values.size < MIN_STEPS or not _finite(values):
        return False
    return _level(values) - scale.bound <= MARGIN * max(usual - scale.bound, 0.0)


def _is_cure(control: Array, treated: Array, scale: Scale) -> bool:
    lost = _lost(treated, scale)
    clear = _apart(control, treated) or lost >= MARGIN * _lost(control, scale) or _stays(control, treated, scale)
    return clear and lost >= GAIN and _trains(treated, scale)


def _lags(control: Array, treated: Array, scale: Scale) -> bool:
    """Of a cure: whether the control, though it learns, learns too small a part of what the treated arm does."""
    if _apart(control, treated):
        return _level(treated) - scale.bound <= (_level(control) - scale.bound) / APART
    return _lost(treated, scale) >= MUCH


def _stays(control: Array, treated: Array, scale: Scale) -> bool:
    """The control keeps a good part of its loss, of which the treated arm leaves a tenth at most."""
    left, other = _level(control) - scale.bound, _level(treated) - scale.bound
    return _lost(control, scale) <= 1 - KEPT and left > 0 and APART * other <= left


def _halved(control: Array, treated: Array, scale: Scale) -> bool:
    """What is left of the loss is at most half of what the control has left, and so in most of the last steps."""
    left, other = _level(control) - scale.bound, _level(treated) - scale.bound
    return left > 0 and MARGIN * other <= left and _better(control, treated, scale)


def _apart(control: Array, treated: Array) -> bool:
    return bool(control[0] > APART * abs(treated[0]) > 0)


def _trains(values: Array, scale: Scale) -> bool:
    trend, lost = _trend(values, scale), _lost(values, scale)
    return (trend.learning and lost > 0) or lost >= MUCH


def _better(worse: Array, better: Array, scale: Scale) -> bool:
    """A noticeable gain of the second over the first in the last two fifths, step by step.

    Of two arms one of which is far above any sensible start, decades count.
    """
    tail = max(3, 2 * min(worse.size, better.size) // 5)
    differences = worse[-tail:] - better[-tail:]
    reference = max(_start(worse, scale), _start(better, scale)) - scale.bound
    noticed = float(np.median(differences)) >= NOTICED * max(reference, 1e-12)
    high, low = _level(worse) - scale.bound, _level(better) - scale.bound
    if high > MARGIN * reference:
        noticed = noticed and high >= APART * low
    return noticed and float((differences > 0).mean()) >= AGREEING


def _lost(values: Array, scale: Scale) -> float:
    start = _start(values, scale)
    return (start - _level(values)) / max(start - scale.bound, 1e-12)


def _start(values: Array, scale: Scale) -> float:
    """The level of the first steps; no higher than the very first, as a loss may jump right after it."""
    start = min(float(np.median(values[:_FIRST])), float(values[0]))
    return start if scale.chance is None else min(start, scale.chance)


def _level(values: Array) -> float:
    return float(np.median(values[-max(2, values.size // 5) :]))


def _trend(values: Array, scale: Scale) -> Trend:
    return judge_series(values, scale.bound)


def _finite(values: Array) -> bool:
    return bool(np.isfinite(values).all())
