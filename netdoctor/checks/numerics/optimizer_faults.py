"""Why an optimizer step, or a load, left a parameter non-finite: what the optimizer's options and the tracks say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from netdoctor.checks.numerics.history import HUGE, gradient_rms, largest_update, story
from netdoctor.checks.numerics.rewriting import Edit, rewrite
from netdoctor.checks.training.optimizer_line import with_lr
from netdoctor.finding import Evidence, Fix, Reach
from netdoctor.recording import Optimizer, Origin, Recording, Stat

_DIVIDES = frozenset({"adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta", "sparseadam"})
_OF_TORCH = _DIVIDES | {"sgd", "asgd", "rprop", "lbfgs", "adafactor", "muon"}
_HALF_EPS = 6e-8  # the smallest number above 0 of float16: a smaller eps is 0 there
_LARGE_UPDATE = 0.1  # two decades over the healthy 1e-3 (CS231n): the step overwrites the weight


@dataclass(frozen=True, slots=True)
class Reason:
    """Why, in a few words and in sentences, with numbers and the fix."""

    short: str
    why: str
    fix: Fix
    evidence: tuple[Evidence, ...] = ()


def explain(recording: Recording, origin: Origin) -> Reason:
    """The reason that fits best; the last resort names the step and asks for a smaller learning rate."""
    if origin.phase == "parameter":
        return _loaded(recording, origin)
    optimizer = _owner(recording, origin)
    if optimizer is None:
        return _own_rule("the loop") if not recording.optimizers else _too_large(recording, origin, None)
    return (
        _no_eps(recording, origin, optimizer)
        or _bad_lr(recording, origin, optimizer)
        or (None if optimizer.type.lower() in _OF_TORCH else _own_rule(optimizer.type))
        or _too_large(recording, origin, optimizer)
    )


def _loaded(recording: Recording, origin: Origin) -> Reason:
    name = origin.parameter or "the parameter"
    code = (
        "bad = [name for name, value in model.state_dict().items() if not value.isfinite().all()]\nassert not bad, bad"
    )
    if origin.step > 0:
        why = f"{name} was finite before and was overwritten outside of the optimizer (in-place code, a load)."
        return Reason("", why, Fix("check-weights", "Look for what writes to it between the steps.", code))
    if recording.facts.get("pretrained"):
        why = f"{name} came non-finite from the loaded state: the checkpoint was saved after a divergence."
        return Reason("loaded so", why, Fix("reload", "Load a checkpoint from before, and test it for NaN.", code))
    why = f"{name} was non-finite before the first step: torch.empty without initialisation, or a NaN scale."
    return Reason(
        "initialised so", why, Fix("initialise", "Initialise it.", f"nn.init.normal_(model.{name}, std=0.02)")
    )


def _no_eps(recording: Recording, origin: Origin, optimizer: Optimizer) -> Reason | None:
    parameter = recording.parameters.get(origin.parameter)
    eps = min((float(group["eps"]) for group in optimizer.groups if "eps" in group), default=math.nan)
    limit = (
        _HALF_EPS
        if parameter is not None and parameter.dtype.endswith("float16") and "b" not in parameter.dtype
        else 0.0
    )
    if optimizer.type.lower() not in _DIVIDES or not eps <= limit:
        return None
    needed = "1e-4" if limit else "1e-8"
    rounds = f" (eps={eps:.3g} is 0 in float16)" if eps > 0 else ""
    why = (
        f"{optimizer.type} divides the mean gradient by sqrt(v) + eps. Where an entry never got a gradient, v is 0, "
        f"and with eps = {eps:.3g} the step is 0/0 = NaN{rounds}. Rows of an embedding that no sample used are such."
    )
    code = (
        _optimizer_line(optimizer, f"eps={needed}") or f"torch.optim.{optimizer.type}(model.parameters(), eps={needed})"
    )
    evidence = Evidence(f"eps of {optimizer.type}", eps, "≤", limit)
    return Reason(
        f"eps = {eps:.3g}", why, Fix("eps", f"Give {optimizer.type} an eps of {needed}.", code, Reach.RUN), (evidence,)
    )


def _bad_lr(recording: Recording, origin: Origin, optimizer: Optimizer) -> Reason | None:
    series = recording.scalars.get("lr")
    rates = np.array([optimizer.lr]) if series is None else series.values[series.steps <= origin.step]
    if len(rates) == 0 or math.isfinite(rates[-1]):
        return None
    why = f"The learning rate itself is {rates[-1]} at step {origin.step}: the schedule divides by 0."
    code = "assert all(math.isfinite(group['lr']) for group in optimizer.param_groups)"
    fix = Fix("schedule", "Mend the schedule, and start it from a finite rate.", code, Reach.RUN)
    return Reason(
        "learning rate is not finite", why, fix, (Evidence("learning rate", float(rates[-1]), "=", float(rates[-1])),)
    )


def _own_rule(owner: str) -> Reason:
    """The update is the user's own code, of which only the result is seen."""
    why = (
        f"The update is a rule that {owner} writes itself, and its result is non-finite though the gradient was finite. A "
        "division by the size of the gradient, or by a running mean of it, is 0/0 where a gradient is exactly 0."
    )
    code = "p -= lr * p.grad / (p.grad.norm() + 1e-8)  # a small number below the line, also beside v.sqrt()"
    return Reason("", why, Fix("eps", "Add a small number to what the update divides by.", code, Reach.RUN))


def _too_large(recording: Recording, origin: Origin, optimizer: Optimizer | None) -> Reason:
    """The gradient is finite, yet the step overflows: weights or gradients are huge."""
    lr = math.nan if optimizer is None else optimizer.lr
    gradient, update = gradient_rms(recording, origin.parameter, origin.step), largest_update(recording, origin.step)
    scale = recording.of_parameter(origin.parameter, Stat.RMS)
    why = "The step left the range of its number format though its gradient was finite."
    evidence = []
    if update is not None and update[1] > _LARGE_UPDATE:
        evidence.append(Evidence(f"update ratio of {update[0]}", update[1], ">", _LARGE_UPDATE))
        why += f" The step before changed {update[0]} by {update[1]:.3g} times its own scale (healthy: about 1e-3)."
    if gradient > HUGE:
        evidence.append(Evidence(f"gradient scale of {origin.parameter}", gradient, ">", HUGE))
    finite = scale.values[np.isfinite(scale.values)] if scale is not None else np.array([])
    if len(finite) and finite[-1] > HUGE:
        evidence.append(Evidence(f"scale of {origin.parameter}", float(finite[-1]), ">", HUGE))
    why = " ".join(filter(None, (why, story(recording, origin))))
    smaller = f"{lr / 10:.3g}" if math.isfinite(lr) else "1e-3"
    code = f"for group in optimizer.param_groups:\n    group['lr'] = {smaller}"
    if optimizer is not None and math.isfinite(lr):
        code = with_lr(optimizer, lr / 10)
    return Reason("", why, Fix("lower-lr", f"Lower the learning rate to {smaller}.", code, Reach.RUN), tuple(evidence))


def _owner(recording: Recording, origin: Origin) -> Optimizer | None:
    parameter = recording.parameters.get(origin.parameter)
    index = 0 if parameter is None or parameter.optimizer is None else parameter.optimizer
    return recording.optimizers[index] if index < len(recording.optimizers) else None


def _optimizer_line(optimizer: Optimizer, keyword: str) -> str | None:
    """The user's line that builds the optimizer with one option set."""
    if optimizer.source is None or not optimizer.source.text:
        return None
    return rewrite(optimizer.source.text, optimizer.type.lower(), Edit(keyword=keyword))
