"""What a second fault hides: a fix tried on top of a proven one, and BatchNorm put back over weights that are mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from netdoctor.experiments.combination import Part, in_turn, kept
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments.treatment import Treatment
from netdoctor.finding import Verdict
from netdoctor.report import Experiment

BLOCKED = frozenset(
    {Verdict.NO_EFFECT, Verdict.NOT_REPRODUCED, Verdict.EASED}
)  # what another fault may be the reason of


def atop(proven: Part, own: Treatment) -> Treatment | None:
    """The treatment with a proven fix of another finding in both arms; None where the two cannot be told apart so.

    The control arm has the other fix alone, the treated one both: what the second adds is its own.
    """
    base = kept(proven)
    alone = own.measure is None and own.holds is None and own.control is Sandbox and base.control is Sandbox
    if not alone or base.beside is not Treatment().beside or Sandbox not in (own.sandbox, base.sandbox):
        return None
    return replace(
        own,
        sandbox=base.sandbox if own.sandbox is Sandbox else own.sandbox,
        both=in_turn([base.both, base.apply, own.both]),
        control=base.sandbox,
        unit=own.unit * base.unit,
        control_unit=own.control_unit * base.unit,
        says=f"{proven.fix.treatment} in both arms, as it is needed too",
    )


def put_back(own: Sequence[float], alone: Sequence[float], together: Sequence[float]) -> Experiment:
    """The row that says whether the mended weights train better still with BatchNorm than without it.

    `own` are the losses of the script as it is, `alone` those of mended weights without BatchNorm, `together` with it.
    """
    ends = [_end(losses) for losses in (own, alone, together)]
    says = (
        f"loss {together[0]:.3g} → {ends[2]:.3g} in {len(together)} steps with mended weights and BatchNorm; "
        f"{alone[0]:.3g} → {ends[1]:.3g} without BatchNorm, {own[0]:.3g} → {ends[0]:.3g} with BatchNorm alone"
    )
    return Experiment("batchnorm-put-back", "passed" if ends[2] <= min(ends[:2]) else "failed", says)


def _end(losses: Sequence[float]) -> float:
    return float(np.median(losses[-max(2, len(losses) // 5) :]))
