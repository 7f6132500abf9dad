"""A weight decay that keeps a training from learning anything: from the start, on a copy, a hundredth of it trains."""

from __future__ import annotations

import math

from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.signal import outcome
from netdoctor.checks.training.pull import loss_left, pulls, weaker
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity, Trial, Verdict
from netdoctor.recording import Arm, Optimizer, Recording
from netdoctor.trend import judge

AS_IT_IS, WEAK = "decay/as it is", "decay/a hundredth of it"
PULL = 0.1  # of the gradient's: under it decay is a small correction
LEFT = 0.2  # of the loss: under it there is little that decay could keep from falling
LEAST = 8  # steps: fewer show no training


def strong(recording: Recording) -> bool:
    """Whether decay pulls with `PULL` of the gradient's strength at a weight matrix or more, and much of the loss is left.

    One matrix is enough: a group of its own may have the decay, and the way through the model is only as wide as there. Early as
    well as late: what has lost its weights has no gradient left to compare with.
    """
    found = [pull for early in (True, False) for pull in pulls(recording, early).values()]
    return max(found, default=0.0) >= PULL and loss_left(recording) >= LEFT


def finding(check: str, recording: Recording, gained: float, times: float) -> Finding | None:
    """The finding that the weights never come to learn under the decay, or None."""
    tried, optimizer = trial(recording, gained, times), strongest(recording)
    if tried is None or optimizer is None or harm(recording).state is not State.HURT:
        return None
    decay = decay_of(optimizer)
    less = weaker(decay, optimizer.type)
    return Finding(
        check,
        f"a weight decay of {decay:g} takes the weights away faster than they learn",
        Severity.ERROR,
        f"{outcome.words(judge(recording))} {_words(recording)}",
        Location.at(optimizer.source),
        (_evidence(recording, gained),),
        (Fix("less-decay", f"Take {less:g}.", f"weight_decay={less:g}", Reach.RUN, tried),),
        Certainty.PROVEN,
        first_step=0,
        share=1.0,
    )


def strongest(recording: Recording) -> Optimizer | None:
    """The optimizer with the strongest weight decay."""
    return max(recording.optimizers, key=decay_of, default=None)


def decay_of(optimizer: Optimizer | None) -> float:
    """The strongest weight decay of an optimizer's groups; 0 of none."""
    return max(
        (float(group.get("weight_decay", 0.0)) for group in (optimizer.groups if optimizer else ())), default=0.0
    )


def trial(recording: Recording, gained: float, times: float) -> Trial | None:
    """The trial of a weak decay if it takes `gained` of the loss off on batches that it was not trained on, and `times` as
    much as the script's own; None else."""
    control, treated = recording.arms.get(AS_IT_IS), recording.arms.get(WEAK)
    if control is None or treated is None or control.failure or treated.failure:
        return None
    before, kept, after = float(control.facts["before"]), _end(control), _end(treated)
    lost, own = before - after, before - kept
    if not (before > 0 and lost >= gained * before and lost >= times * own):  # NaN compares false
        return None
    steps = min(len(control.losses), len(treated.losses))
    curves = tuple(map(float, control.losses)), tuple(map(float, treated.losses))
    says = f"on other batches the loss went {before:.3g} → {after:.3g} with it, → {kept:.3g} without"
    return Trial(Verdict.CURED, *curves, steps=steps, seconds=control.seconds + treated.seconds, says=says)


def _evidence(recording: Recording, gained: float) -> Evidence:
    """What the weak decay takes off, beside its limit."""
    before, after = (float(recording.arms[WEAK].facts[key]) for key in ("before", "data"))
    return Evidence(
        "fall of the loss with a weak decay, on other batches", 100 * (1 - after / before), "≥", 100 * gained, "%"
    )


def _words(recording: Recording) -> str:
    """What was seen, as a sentence."""
    control, treated = recording.arms[AS_IT_IS], recording.arms[WEAK]
    before, kept, after = float(control.facts["before"]), _end(control), _end(treated)
    return (
        f"From the start, on a copy, {len(treated.losses)} steps bring the loss on other batches from {before:.3g} to {after:.3g} "
        f"with a weak decay, and to {kept:.3g} with the script's."
    )


def _end(arm: Arm) -> float:
    data = float(arm.facts["data"])
    return data if math.isfinite(data) else math.inf
