"""Where a trial has a number of its own: what that number and the losses say together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from netdoctor.experiments.treatments.treatment import Measure
from netdoctor.experiments.verdict import by_measure
from netdoctor.finding import Measured, Verdict
from netdoctor.trend import judge_series


def by_number(
    measure: Measure, control: float, treated: float, losses: Sequence[float], verdict: Verdict | None
) -> tuple[Verdict | None, Measured | None]:
    """The verdict, and the number to tell in place of the losses; None for it where these decided.

    `losses` are those of the treated arm and `verdict` what both curves say. A number that is a second witness is heard
    where they show no cure and no harm, and counts as far as it says more for the treatment than they do.
    """
    told = None if math.isnan(control) else Measured(measure.quantity, control, treated, measure.unit)
    trains = verdict
    if not measure.witness:
        trains = Verdict.WORSE if judge_series(losses).kind in {"rises", "non-finite"} else None
    found = by_measure(control, treated, measure.limit, trains)
    if not measure.second:
        return found, told
    settled = verdict is Verdict.CURED or (verdict is Verdict.WORSE and measure.witness)
    more = found is Verdict.CURED or (found is Verdict.EASED and verdict is not Verdict.EASED)
    return (found, told) if not settled and (more or verdict is None) else (verdict, None)
