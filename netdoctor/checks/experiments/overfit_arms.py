"""The arms of the overfit experiment, read as plain questions."""

from __future__ import annotations

import math

from netdoctor.recording import Arm, Recording

OWN = "overfit/own"


def ran(recording: Recording) -> list[Arm]:
    """The arms that trained the unchanged model, the script's own optimizer first, then the sweep of Adam."""
    arms = [arm for name, arm in recording.arms.items() if name == OWN or name.startswith("overfit/adam")]
    return sorted((arm for arm in arms if not arm.failure), key=lambda arm: arm.name != OWN)


def why_not(recording: Recording) -> str:
    """Why no arm can be read."""
    own = recording.arms.get(OWN)
    return "experiments were off, or their budget ran out" if own is None else own.failure


def unclear(recording: Recording, arms: list[Arm], steps: int, never_falls: bool) -> str:
    """Why arms that did not fit say nothing; "" when they do. A loss of unknown kind speaks only when it never falls."""
    if recording.facts.get("moving_target") or recording.facts.get("several_optimizers"):
        return "several models play against each other, so one batch has no floor"
    right = arms[0].facts.get("kind") == "classes"  # is asked of every sample; of many a few may stay wrong for longer
    if right and any(number(arm, "best") <= number(arm, "floor") for arm in arms):
        return "the loss got to its floor, though not every sample was right in the steps tried"
    longest = max(len(arm.losses) for arm in arms)
    if longest < steps or arms[-1].name == OWN:
        return f"{len(arms)} settings with {longest} steps ran, {steps} steps and a sweep are needed"
    if arms[0].facts.get("kind") in {"classes", "regression"} or never_falls:
        return ""
    return "the loss is neither of classes nor of regression, so its floor is not known"


def unblocked(recording: Recording) -> list[str]:
    """The names of what was removed or mended in arms that then did fit ("dropout", "matched initialisation")."""
    there = [
        (name, arm) for name, arm in recording.arms.items() if name.startswith(("overfit/without ", "overfit/with "))
    ]
    return [name.removeprefix("overfit/") for name, arm in there if not arm.failure and reached(arm)]


def reached(arm: Arm) -> bool:
    """Whether the loss got to its floor."""
    return bool(arm.facts.get("reached"))


def number(arm: Arm, fact: str) -> float:
    """A fact as a number; NaN where it was not given."""
    return float(arm.facts.get(fact, math.nan))


def remaining(arm: Arm) -> float:
    """The share of the starting loss, above the floor, that is left at its best; 1 when nothing was gained."""
    start, best, floor = (number(arm, fact) for fact in ("start", "best", "floor"))
    floor = 0.0 if math.isnan(floor) else floor
    if not (math.isfinite(start) and math.isfinite(best)) or start <= floor:
        return 1.0
    return min(1.0, (best - floor) / (start - floor))


def course(arm: Arm) -> str:
    """How the loss went, as one word: "non-finite", "rises", "constant", "plateau"."""
    start, best, constant = (number(arm, fact) for fact in ("start", "best", "constant"))
    last = float(arm.losses[-1]) if arm.losses.size else math.nan
    if not math.isfinite(last):
        return "non-finite"
    if last > 1.5 * start and best > 0.9 * start:
        return "rises"
    if best > 0.95 * constant:  # NaN compares false
        return "constant"
    return "plateau"


def samples(arm: Arm) -> str:
    """How many samples there were, in words."""
    return f"{number(arm, 'samples'):.0f} samples" if "samples" in arm.facts else "a tiny batch"


def adam(arm: Arm) -> str:
    """The setting of an arm of the sweep, in words."""
    return f"Adam at {arm.name.rpartition(' ')[2]}"


def adam_code(arm: Arm) -> str:
    """The setting of an arm of the sweep, as code."""
    return f"optimizer = torch.optim.Adam(model.parameters(), lr={arm.name.rpartition(' ')[2]})"


def draws(recording: Recording, short: bool = False) -> str:
    """Why no floor can be asked for, where the model samples even in evaluation mode, or the run is `short`; else ""."""
    if short:
        return "nearly all of the loss was lost on a tiny batch, and the run is too short to show more"
    arm = recording.arms.get("determinism/evaluation")
    drawn = arm is not None and not arm.failure and bool(arm.facts.get("differs"))
    return "the model draws random numbers of its own: what it cannot foresee stays in the loss" if drawn else ""
