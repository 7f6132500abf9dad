"""A learning rate with which a training works, and far less than it would with a tenth of it."""

from __future__ import annotations

import math

import numpy as np

from netdoctor.checks.training.lr_trials import Rescue, level, ran
from netdoctor.checks.training.optimizer_line import setting
from netdoctor.finding import Finding, Location, Severity
from netdoctor.recording import Arm, Recording
from netdoctor.trend import Trend

OWN, LOWER = "rates/own", "rates/x0.1"  # both from the start of the training, on its batches
LONG = 90  # steps: a lower rate that is worth a word is far ahead by then
FAST, HALF = 0.6, 0.5  # of the loss that the lower rate loses, and of what its own rate leaves that it leaves at most
BEHIND = 1.5  # times what the lower rate leaves in some tens of steps is what the script's whole run ends at, or more


def finding(check: str, recording: Recording, trend: Trend) -> Finding | None:
    """The warning that a tenth of the learning rate learns far more in as many steps, or None."""
    found = _faster(recording, trend.end) if trend.learning else None
    if found is None:
        return None
    return Finding(
        check,
        f"the learning rate {found.old:g} slows the training down: at {found.lr:g} it learns far more",
        Severity.WARNING,
        f"The loss falls, to {trend.end:.3g} in {trend.steps} steps; on a copy, from the same weights on the same batches, "
        f"a lower rate brings it to {level(found.treated):.3g} in {len(found.treated.losses)}.",
        Location.at(setting(recording)),
        found.evidence(FAST, 0.0),
        (found.fix(recording, "lower-learning-rate"),),
        found.certainty,
        first_step=1,
        share=0.5,
    )


def _faster(recording: Recording, end: float) -> Rescue | None:
    """A tenth of the learning rate that leaves half of the loss that the script's own leaves in as many steps, or less, and less
    than the whole run, which ended at `end`. Losses that may be negative have no such shares."""
    control, lower = ran(recording, OWN), ran(recording, LOWER)
    if control is None or lower is None or not (_whole(control) and _whole(lower)):
        return None
    start = float(control.losses[0])
    lost, own = 1 - level(lower) / start, 1 - level(control) / start
    if lost < FAST or level(lower) > HALF * level(control) or level(lower) * BEHIND > end:
        return None
    old, lr = (float(arm.facts.get("lr", math.nan)) for arm in (control, lower))
    return Rescue(lr, old, lost, own, control, lower, slow=1 - level(lower) / HALF / start)


def _whole(arm: Arm) -> bool:
    return len(arm.losses) >= LONG and bool(np.isfinite(arm.losses).all()) and bool((arm.losses > 0).all())
