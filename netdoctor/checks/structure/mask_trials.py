"""Two copies that train from the same weights on the same batches, one with its masks turned round: which one learns?"""

from __future__ import annotations

import math

import numpy as np

from netdoctor.checks.signal import outcome
from netdoctor.checks.training.lr_trials import level
from netdoctor.finding import Trial, Verdict
from netdoctor.recording import Arm, Recording
from netdoctor.trend import Trend, judge

SEEN, AS_IT_IS, INVERTED = "masks/seen", "masks/as it is", "masks/inverted"
LONG = 60  # steps, as for other starts: a mask of the right sense is ahead by then, or it does not matter here
HALF, MUCH, TWICE = 0.5, 0.3, 2.0  # of the loss left; of it lost; that many times the other's: what a cure reaches
BEHIND = 1.5  # times: the turned arm is ahead of the whole run, which had more steps, by as much as this


def told(recording: Recording, seen: Arm) -> bool:
    """Whether a trial of the mask that was seen tells: one of a model that runs backwards in time and learns is no fault."""
    kind = seen.facts.get("kind")
    return kind == "padding" or (kind == "causal" and outcome.hurt(judge(recording)))


def ahead(control: Arm, treated: Arm, recording: Recording, trend: Trend) -> bool:
    """Whether the arm with turned masks is far ahead of the one as it is and, where the training works, of the whole run.

    A control that ends in NaN or Inf lost nothing.
    """
    bound = float(recording.facts.get("loss_lower_bound", 0.0))
    floor = bound if math.isfinite(bound) else 0.0
    if len(treated.losses) < LONG or not bool(np.isfinite(treated.losses).all()):
        return False
    steps = min(len(control.losses), len(treated.losses))
    sound = bool(np.isfinite(control.losses).all()) and steps >= LONG
    if not sound and bool(np.isfinite(control.losses).all()):
        return False
    first = control.losses[0] if sound else treated.losses[0]
    start, left = float(first) - floor, level(treated) - floor
    own = level(Arm("", control.losses[:steps])) - floor if sound else start
    if not start > 0:
        return False
    lost, least = 1 - left / start, max(1 - own / start, 0.0)
    far = lost >= TWICE * least
    if not sound or outcome.hurt(trend):
        return far and lost >= outcome.LITTLE
    end = trend.end - floor  # NaN: no end is known, and the arms tell alone
    halved = left <= HALF * own and not left * BEHIND > end
    return lost >= MUCH and (halved or (far and not lost < BEHIND * max(least, 1 - end / start)))


def trial(control: Arm, treated: Arm) -> Trial:
    """The two arms as the trial of the fix."""
    curves = tuple(map(float, control.losses)), tuple(map(float, treated.losses))
    return Trial(Verdict.CURED, *curves, steps=len(treated.losses), seconds=control.seconds + treated.seconds)


def words(control: Arm, treated: Arm) -> str:
    """What the two arms came to, as a sentence."""
    own = level(control)
    end = f"{own:.3g} as it is" if math.isfinite(own) else "NaN as it is"
    says = f"On a copy, from the same weights on the same batches, {len(treated.losses)} steps end at {end}"
    return f"{says}, {level(treated):.3g} with the mask turned round."
