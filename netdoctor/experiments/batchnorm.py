"""What does batch normalisation hide? The signal with and without it, for the same weights and the same batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.step import Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tree import tensors
from netdoctor.checks.signal.profile import CEILING, FLOOR, Profile
from netdoctor.errors import why_it_failed
from netdoctor.experiments.initialisation import WEIGHT_LAYERS, match_initialisation
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm

STEPS = 20  # enough to see a loss become non-finite ("after one or two iterations" in the acceptance case)
_ARMS = {
    "batchnorm/with": (False, False),
    "batchnorm/bypassed": (True, False),
    "batchnorm/bypassed, matched initialisation": (True, True),
}
Name = Callable[[nn.Module], str]
Rms = dict[str, tuple[float, float]]


def bypass(step: TrainingStep, budget: Budget, name: Name | None = None) -> dict[str, Arm]:
    """The arms "batchnorm/with", "batchnorm/bypassed" and "batchnorm/bypassed, matched initialisation".

    No BatchNorm, no arms. `profile` is of the first step: root mean square of each weight layer's output and of the
    gradient with respect to it, in order of execution. Facts: `finite`, `layers` (number of BatchNorms),
    `forward_decades` and `backward_decades` (log10 of the growth over the depth, along the forward and along the
    backward pass; 0 where no line fits), `growth_per_layer` (a factor). The losses are those of the script's own
    optimizer on the captured batches. `name` gives the reader's name of an original module (default: its path in its
    model). `F.batch_norm` called by the user's own code is left as it is.
    """
    number = sum(isinstance(child, _BatchNorm) for child in _all_modules(step))
    arms: dict[str, Arm] = {}
    if number == 0:
        return arms
    for arm, (without, matched) in _ARMS.items():
        if budget.left <= 0:
            break
        edit = partial(_edit, without=without, matched=matched)
        arms[arm] = _arm(arm, step, budget.share(budget.left / 2), edit, name)
        if arms[arm].failure:
            break  # what stops one of them stops them all
        arms[arm] = _with_facts(arms[arm], number)
    return arms


def bypass_batchnorm(module: nn.Module) -> int:
    """Replace every BatchNorm under a copied module by its scale and shift only; returns how many there were."""
    found = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    for child in found:
        # The module itself stays: the replay counts modules, and the optimizer holds their parameters.
        vars(child)["forward"] = partial(scale_and_shift, child)
    return len(found)


def scale_and_shift(norm: Any, values: Tensor) -> Tensor:
    """What BatchNorm does after normalising: `values` of shape (batch, channels, ...) times weight plus bias."""
    shape = (1, -1, *(1,) * (values.dim() - 2))
    if norm.weight is not None:
        values = values * norm.weight.view(shape)
    return values if norm.bias is None else values + norm.bias.view(shape)


def _edit(sandbox: Sandbox, without: bool, matched: bool) -> None:
    for module in sandbox.modules():
        if without:
            bypass_batchnorm(module)
        if matched:
            match_initialisation(module)


def _all_modules(step: TrainingStep) -> list[nn.Module]:
    return list({id(child): child for module in step.modules for child in module.modules()}.values())


def _arm(arm: str, step: TrainingStep, budget: Budget, edit: Callable[[Sandbox], None], name: Name | None) -> Arm:
    try:
        with quiet():
            sandbox = Sandbox(step)
            edit(sandbox)
            profile, finite = _measure(sandbox, step.iterations[0], _names(step, sandbox, name))
            run = Sandbox(step)
            edit(run)
            done = run.run(step.iterations, STEPS, budget)
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        return Arm(arm, np.empty(0), failure=why_it_failed(error))
    facts: dict[str, float | str | bool] = {"finite": finite, "ended": done.ended}
    return Arm(arm, np.asarray(done.losses), done.seconds, facts, profile)


def _names(step: TrainingStep, sandbox: Sandbox, name: Name | None) -> dict[nn.Module, str]:
    """The reader's name of every copied weight layer: its path in the topmost model that holds it."""
    tops = {id(module) for module in sandbox.modules()}
    found: dict[nn.Module, str] = {}
    for original in step.modules:
        copied = sandbox.copies.of(original)
        if id(copied) not in tops:
            continue
        for (path, old), new in zip(original.named_modules(), copied.modules(), strict=True):
            if isinstance(new, WEIGHT_LAYERS):
                found[new] = path if name is None else name(old)
    return found


def _measure(sandbox: Sandbox, iteration: Iteration, names: dict[nn.Module, str]) -> tuple[Rms, bool]:
    """One forward and backward pass: ({layer: (activation rms, gradient rms)}, whether all of it was finite)."""
    forward: dict[str, float] = {}
    backward: dict[str, float] = {}

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        values = next(tensors(output), None)
        if values is None or name in forward:
            return
        forward[name] = _rms(values.detach())
        if values.requires_grad:
            values.register_hook(lambda gradient: backward.__setitem__(name, _rms(gradient)))

    handles = [module.register_forward_hook(partial(look, name)) for module, name in names.items()]
    try:
        refuse_overwritten(iteration.backwards[0])
        loss = Replay(sandbox.copies).loss(iteration.backwards[0])
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    profile = {name: (scale, backward.get(name, math.nan)) for name, scale in forward.items()}
    finite = all(map(math.isfinite, [float(loss.detach()), *forward.values(), *backward.values()]))
    return profile, finite


@torch.no_grad()
def _rms(values: Tensor) -> float:
    """Of the finite range of float64, so that a large but finite signal does not overflow in its own square."""
    return float(values.double().square().mean().sqrt())


def _with_facts(arm: Arm, layers: int) -> Arm:
    forward, slope = _decades([scale for scale, _ in arm.profile.values()])
    backward, _ = _decades([scale for _, scale in arm.profile.values()][::-1])
    facts = {
        **arm.facts,
        "layers": float(layers),
        "forward_decades": forward,
        "backward_decades": backward,
        "growth_per_layer": 10**slope,
    }
    return Arm(arm.name, arm.losses, arm.seconds, facts, arm.profile)


def _decades(scales: list[float]) -> tuple[float, float]:
    """(growth over the whole depth, growth per layer) in decades; without zero-initialised ends, which say nothing."""
    known = [scale if math.isfinite(scale) else 10**CEILING for scale in scales if not scale <= FLOOR]
    if len(known) < 3:
        return 0.0, 0.0
    found = Profile((), np.log10(np.asarray(known)))
    return found.total, found.slope
