"""A term of the loss that compares nothing with data, and keeps the training from learning from its data at all."""

from __future__ import annotations

from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Measured, Reach, Severity, Trial, Verdict
from netdoctor.recording import Arm, Recording, SourceLine

AS_IT_IS, LESS = "side-terms/as it is", "side-terms/with little of them"
UNFIT = 0.9  # of the best constant prediction's loss: nothing was learned from the data, though some of it is chance
GAINED = 0.3  # of what is left of it: as of any penalty
CODE = "loss = data_loss + 0.001 * term  # raise it from there; or take the same reduction, sum or mean, for both"


def finding(check: str, recording: Recording) -> Finding | None:
    """The finding that with a thousandth of such a term the training learns from its data, or None."""
    control, treated = recording.arms.get(AS_IT_IS), recording.arms.get(LESS)
    if control is None or treated is None or control.failure or treated.failure:
        return None
    kept, left = (float(arm.facts["left"]) for arm in (control, treated))
    if not (kept >= UNFIT and left <= (1 - GAINED) * kept):  # NaN compares false
        return None
    says = f"{len(treated.losses)} steps from the start leave {100 * left:.0f} % of what a constant prediction leaves with a "
    says += f"thousandth of it, and {100 * kept:.0f} % with all of it: the model ignores its data to please that term."
    return Finding(
        check,
        "a term of the loss outweighs the comparison with the data, and nothing is learned from that",
        Severity.ERROR,
        says,
        Location.at(line(recording)),
        (
            Evidence("loss of the data, of a constant prediction's", 100 * kept, "≥", 100 * UNFIT, "%"),
            Evidence("the same with a thousandth of the term", 100 * left, "≤", 100 * (1 - GAINED) * kept, "%"),
        ),
        (
            Fix(
                "less-of-a-term",
                "Take a thousandth of the term, and raise it as long as the data is still learned.",
                CODE,
                Reach.RUN,
                _trial(control, treated, kept, left),
            ),
        ),
        Certainty.PROVEN,
        share=min(1.0, 1 - left / kept),
    )


def _trial(control: Arm, treated: Arm, kept: float, left: float) -> Trial:
    curves = tuple(map(float, control.losses)), tuple(map(float, treated.losses))
    measured = Measured("loss of the data, of a constant prediction's", 100 * kept, 100 * left, "%")
    steps, seconds = len(treated.losses), control.seconds + treated.seconds
    return Trial(Verdict.CURED, *curves, steps=steps, seconds=seconds, measured=measured)


def line(recording: Recording) -> SourceLine | None:
    """The line that adds a term to the loss."""
    graph = recording.graph
    for operation in graph.loss_operations() if graph is not None else ():
        if operation.name in ("add", "iadd") and operation.file and len(operation.inputs) > 1 and not operation.inside:
            return SourceLine(operation.file, operation.line, operation.text)
    return None
