"""What the trial with standardised data says, and the words and code that go with it."""

from __future__ import annotations

import math
from enum import Enum

from netdoctor.checks.data.harm import Harm, level
from netdoctor.data import TensorFacts
from netdoctor.finding import Location, Trial, Verdict
from netdoctor.recording import Arm, Recording, SourceLine

STEPS = 30  # fewer say nothing
LEARNED, STUCK = 0.8, 0.95  # of the loss of a constant prediction: the one arm got under it, the other did not
FASTER = 2.0  # times what the control learned in the same steps, below a constant prediction, where that trains as well
FURTHER = 0.2  # of what the control left, of a constant prediction's loss: it trains, and far from where it could
NO_EASIER = 0.97  # of the control's share of its constant: the trial made no difference


class Says(Enum):
    """The answer of a trial."""

    CURED = "cured"
    FASTER = "faster"
    NO_EFFECT = "no effect"
    OPEN = "open"


def arm(recording: Recording, what: str) -> Arm | None:
    """The arm in which `what` ("input", "target") was standardised, if it ran for long enough or to a NaN."""
    found = recording.arms.get(f"scaling/{what}")
    return found if found is not None and not found.failure and len(found.losses) >= STEPS else None


def verdict(recording: Recording, what: str, state: Harm) -> tuple[Says, Trial | None]:
    """Whether standardising trains where the control does not; a start above a constant prediction is no progress."""
    alone = _compared(recording, what, state)
    together = _compared(recording, "both", state)  # where both are out of scale, either alone may show nothing
    return together if alone[0] is not Says.CURED and together[0] is Says.CURED else alone


def beside(tried: Trial | None) -> str:
    """What a reader must know of a trial in which input and target were both standardised; "" for any other."""
    both = tried is not None and "input and the target" in tried.says
    return " Tried with input and target both standardised: either alone made no difference." if both else ""


def _compared(recording: Recording, what: str, state: Harm) -> tuple[Says, Trial | None]:
    control, treated = recording.arms.get("scaling/control"), arm(recording, what)
    if control is None or control.failure or not len(control.losses) or treated is None:
        return Says.OPEN, None
    constant = state.constant if state.constant > 0 else min(float(control.losses[0]), float(treated.losses[0]))
    before, after = level(control) / constant, level(treated) / constant
    cured = after < LEARNED and before > max(STUCK, after / LEARNED)
    faster = after < LEARNED and (1 - after >= FASTER * (1 - before) or after <= FURTHER * before)
    says = (
        Says.CURED if cured else Says.FASTER if faster else Says.NO_EFFECT if after > NO_EASIER * before else Says.OPEN
    )
    return says, _trial(control, treated, what, says, before, after)


def _trial(control: Arm, treated: Arm, what: str, says: Says, before: float, after: float) -> Trial:
    what = "input and the target" if what == "both" else what
    words = (
        f"on a copy, after {len(treated.losses)} steps, {_left(before)}; with the {what} standardised {_left(after)}"
    )
    graded = {Says.CURED: Verdict.CURED, Says.NO_EFFECT: Verdict.NO_EFFECT}
    curves = tuple(map(float, control.losses)), tuple(map(float, treated.losses))
    return Trial(
        graded.get(says, Verdict.EASED), *curves, steps=len(treated.losses), seconds=treated.seconds, says=words
    )


def _left(share: float) -> str:
    if not math.isfinite(share):
        return "the loss is no number any more"
    return f"{100 * share:.3g} % of a constant prediction's loss is left"


def called(facts: TensorFacts, default: str) -> str:
    """The script's own name of a tensor, where it is a plain one."""
    return facts.name if facts.name.isidentifier() else default


def standardise(facts: TensorFacts, name: str) -> str:
    """Code that standardises a tensor: with its own numbers where one scale fits all columns, else per column."""
    columns = facts.columns
    if columns.std.size == 1 or uneven(facts) < 10:
        return rescaled(name, facts.mean, facts.std)
    if columns.std.size <= 12 and facts.stride == 1:
        mean = ", ".join(f"{v:.4g}" for v in columns.mean)
        std = ", ".join(f"{v or 1.0:.4g}" for v in columns.std)
        shape = f".view(1, -1{', 1' * (len(facts.shape) - 2)})" if facts.axis == "channel" else ""
        return (
            f"mean, std = torch.tensor([{mean}]){shape}, torch.tensor([{std}]){shape}\n{name} = ({name} - mean) / std"
        )
    over = tuple(d for d in range(len(facts.shape)) if d != (1 if facts.axis == "channel" else len(facts.shape) - 1))
    once = f"# once, over the training set X:\nmean, std = X.mean({over}), X.std({over}).clamp_min(1e-6)"
    return f"{once}\n{name} = ({name} - mean) / std"


def rescaled(name: str, mean: float, std: float) -> str:
    """Code for one scale."""
    return f"{name} = ({name} {'-' if mean >= 0 else '+'} {abs(mean):.4g}) / {std or 1.0:.4g}"


def location(facts: TensorFacts, module: str = "", operation: str = "") -> Location:
    """The line that hands the tensor over, from the first step on."""
    at = SourceLine(facts.file, facts.line, facts.text) if facts.file else None
    return Location.at(at, module or None, operation or None, step=0)


def uneven(facts: TensorFacts) -> float:
    """How many times the largest column's deviation exceeds the smallest one's, of the columns that vary."""
    std = facts.columns.std[facts.columns.std > 0]
    return float(std.max() / std.min()) if std.size > 1 else 1.0
