"""Why a tiny batch could not be fitted, as one of a few classes, from what its arms and the copies show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from netdoctor.experiments.loss_terms import REGRESSION, Term
from netdoctor.experiments.side_effects import Units
from netdoctor.recording import Arm

NO_PATH, SIGN, BROADCAST, IDLE = "no gradient path", "wrong sign or reduction", "broadcast", "saturated or dead"
CAPACITY, CONFLICT, RATE, IGNORED = "capacity", "conflicting labels", "learning rate", "input ignored"
WIDER = "with wider layers"
_MOST = 0.9  # of the units of a layer dead, or of its values saturated: next to nothing gets through
_RISEN = 1.5  # times the start: no noise of a batch that is repeated
_OWN_RATE = "overfit/own lr x"


def broadcast(terms: Sequence[Term]) -> str:
    """The two shapes of a regression that are compared although they differ; "" where they are the same."""
    for term in terms:
        if term.kind == REGRESSION and term.prediction is not None and term.target is not None:
            one, other = tuple(term.prediction.shape), tuple(term.target.shape)
            if one != other and term.prediction.numel() > 1 < term.target.numel():
                return f"{one} with {other}"
    return ""


def idle(units: Units) -> str:
    """The first activation that lets next to nothing through, in words; "" where all do."""
    for name, (dead, saturated) in units.items():
        if max(dead, saturated) >= _MOST:
            share, units_of, are = (dead, "units", "dead") if dead >= saturated else (saturated, "values", "saturated")
            return f"{100 * share:.0f} % of the {units_of} of {name} are {are}"
    return ""


def classify(arms: Mapping[str, Arm], nonlinear: bool) -> tuple[str, str]:
    """(class, why) of an overfit experiment in which the script's own settings did not fit; ("", "") where none shows.

    Facts of the batch and the copy come before what a treatment changed, causes before what follows from them.
    `nonlinear`: the step has an operation that bends between two layers.
    """
    own = arms.get("overfit/own")
    if own is None or own.failure or own.facts.get("reached"):
        return "", ""
    facts, shown = own.facts, [arm for arm in arms.values() if not arm.failure]
    if facts.get("idle"):
        return IDLE, str(facts["idle"])
    if facts.get("unreached") == 1.0 or facts.get("gradient") == 0.0:
        return NO_PATH, "no trained weight gets a gradient"
    if facts.get("input_ignored") and float(facts.get("cut", 0.0)) > 0:
        return NO_PATH, f"{100 * float(facts['cut']):.0f} % of the trained tensors are cut off from the loss"
    if facts.get("conflicting"):
        return CONFLICT, f"samples {facts['conflicting']} have the same input and different targets"
    if facts.get("broadcast"):
        return BROADCAST, f"the loss compares {facts['broadcast']}"
    if facts.get("input_ignored"):
        return IGNORED, "the outputs stay the same when the inputs are exchanged between the samples"
    fitted = [arm.name for arm in shown if arm.facts.get("reached")]
    if fitted:
        return _of_settings(fitted)
    if shown and all(_rises(arm) for arm in shown):
        return SIGN, "the loss rises whatever the optimizer and its rate"
    if not nonlinear:
        return CAPACITY, "no activation stands between its layers: it is linear in its input"
    return "", ""


def _of_settings(fitted: Sequence[str]) -> tuple[str, str]:
    rate = next((name for name in fitted if name.startswith(_OWN_RATE)), "")
    if rate:
        return RATE, f"it fits with its own optimizer at {rate.removeprefix(_OWN_RATE)} times the learning rate"
    if f"overfit/{WIDER}" in fitted:
        return CAPACITY, "it fits with wider layers"
    return "", ""


def _rises(arm: Arm) -> bool:
    """Whether the loss was seen to rise: a NaN that comes before any rise is no way up."""
    start, losses = float(arm.facts.get("start", math.nan)), arm.losses
    return losses.size > 1 and not losses[-1] <= _RISEN * start and bool((losses > _RISEN * start).any())
