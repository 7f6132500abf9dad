"""Treatment of a language model's targets: each prediction is compared with the token that comes next."""

from __future__ import annotations

from netdoctor.checks.structure.shifted_target import NEXT, OFFSET, ShiftedTarget
from netdoctor.experiments.offsets import Moved, aligned, next_loss
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment


def next_token(case: Case) -> Treatment | None:
    """The targets moved by as many positions as they lie beside the next tokens."""
    arm = case.recording.arms.get(OFFSET)
    if arm is None or arm.facts.get("looped"):
        return None
    found = [one for one, _ in aligned(case.step) if one.moved == float(arm.facts["moved"])]
    if not found:
        return None
    ahead, one = int(float(arm.facts["offset"])), found[0]
    backwards = [iteration.backwards[0] for iteration in case.step.iterations]

    def apply(bench: Bench) -> None:
        bench.stack.enter_context(Moved(one, ahead - NEXT))

    def left(bench: Bench) -> float:
        return 100 * next_loss(bench.sandbox.copies, backwards, one, ahead)

    name = "loss on the next tokens, of the best constant prediction's"
    return Treatment(apply, measure=Measure(name, left, 100 * ShiftedTarget.learned, "%", witness=False))


TREATMENTS: dict[str, Maker] = {"next-token": next_token}
