"""What weights that start off scale do to the signal at step 0, and how grave that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netdoctor.checks.signal import initialisation, outcome
from netdoctor.checks.signal import profile as depth
from netdoctor.checks.signal.initialisation import Scale
from netdoctor.finding import Severity
from netdoctor.recording import Recording
from netdoctor.trend import Trend


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the signal at step 0 over that of the input."""

    amplified: float
    exploded: float
    shrunk: float
    shrunk_failing: float
    saturating: float
    most: float


def signal(recording: Recording, own: Sequence[Scale]) -> list[float]:
    """The scale of each weight layer's output at step 0 over that of the net's input.

    The input's scale is what the first weight tells: rms(output) / (rms(weight) sqrt(fan_in)). NaN where unknown.
    """
    outputs = [depth.scale(recording, s.layer) for s in own]
    start = outputs[0] / own[0].gain if outputs and outputs[0] else math.nan
    return [math.nan if value is None else value / start for value in outputs]


def of_large(
    recording: Recording, own: Sequence[Scale], large: Sequence[Scale], trend: Trend, limits: Limits
) -> Severity | None:
    """The severity of weights that start too large; None when the signal does not mind."""
    if not large:
        return None
    amplification = max((x for x in signal(recording, own) if not math.isnan(x)), default=0.0)
    if amplification >= limits.exploded:
        return Severity.WARNING if outcome.learns(trend) else Severity.ERROR
    saturated = any(_saturates(recording, s, limits.saturating) for s in large)
    if (amplification >= limits.amplified or saturated) and trend.kind != "unknown":
        return Severity.ERROR if outcome.hurt(trend) else Severity.WARNING
    normalised = any(initialisation.normalised(recording, s.layer) for s in large)
    return Severity.WARNING if normalised and len(large) >= max(2, limits.most * len(own)) else None


def of_small(recording: Recording, own: Sequence[Scale], trend: Trend, limits: Limits) -> Severity | None:
    """The severity of weights that start too small, by what is left of the signal at the last hidden layer."""
    left = [x for x in signal(recording, own[:-1]) if not math.isnan(x)]
    if not left:
        return None
    if outcome.hurt(trend) and left[-1] <= limits.shrunk_failing:
        return Severity.ERROR
    return Severity.WARNING if left[-1] <= limits.shrunk and np.median(left) < 1 else None


def _saturates(recording: Recording, found: Scale, limit: float) -> bool:
    bounded = initialisation.activation_after(recording, found.layer) in depth.SQUASHING
    kept = initialisation.normalised(recording, found.layer) is not None
    return bounded and not kept and (depth.scale(recording, found.layer) or 0.0) >= limit
