"""Does a training that is stuck work from the start where its weight decay is weak?"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from netdoctor.capture.step import Action, Iteration, TrainingStep
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.training.decayed import AS_IT_IS, LEAST, WEAK, strong
from netdoctor.checks.training.pull import DECOUPLED, weaker
from netdoctor.errors import why_it_failed
from netdoctor.experiments.regularisation import mean_loss
from netdoctor.experiments.rounding import at_the_highest_rate
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm, Recording

STEPS = 100
FEWEST = 6  # captured iterations, of which a third can be left out of the training


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "decay/as it is" and "decay/a hundredth of it", where the training is hurt, and decay pulls at the weights with a
    good part of what the gradient does: early in the run, or when it has taken them away.

    Both go from the weights of before the first step over two thirds of the captured batches. Losses: of each step. Facts:
    `before` and `data`, the mean loss of the other batches at the start and at the end, dropout off.
    """
    asked = harm(recording).state is State.HURT and strong(recording)
    if not asked or recording.origin is not None or step.lost or not step.iterations or not step.optimizers:
        return {}
    control = _arm(AS_IT_IS, recording, step, budget.share(budget.left / 2), STEPS)
    if control.failure:
        return {AS_IT_IS: control}
    return {AS_IT_IS: control, WEAK: _arm(WEAK, recording, step, budget, len(control.losses))}


def _arm(name: str, recording: Recording, step: TrainingStep, budget: Budget, steps: int) -> Arm:
    began, losses = time.perf_counter(), list[float]()
    cut = len(step.iterations) - (len(step.iterations) // 3 if len(step.iterations) >= FEWEST else 0)
    train, held = step.iterations[:cut], step.iterations[cut:] or step.iterations
    try:
        with quiet():
            sandbox = Sandbox(step)
            if name == WEAK:
                train = _weakened(sandbox, train)
            before = mean_loss(sandbox, held)
            while len(losses) < steps and budget.left > 0 and math.isfinite(sum(losses[-1:])):
                count = len(losses)
                if count == len(train):
                    at_the_highest_rate(sandbox, recording)
                losses.append(sandbox.iterate(train[count % len(train)], count < len(train)))
            data = mean_loss(sandbox, held)
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    if len(losses) < min(LEAST, steps):
        return Arm(name, np.empty(0), failure=f"{len(losses)} steps were all that there was time for")
    says = f"loss on other batches {before:.3g} → {data:.3g} in {len(losses)} steps"
    facts: dict[str, float | str | bool] = {"before": before, "data": data, "says": says}
    return Arm(name, np.asarray(losses), time.perf_counter() - began, facts)


def _weakened(sandbox: Sandbox, iterations: list[Iteration]) -> list[Iteration]:
    """Every group's decay made weak, also in what the script's own schedule sets at each step."""
    decoupled = [_decoupled(optimizer) for optimizer in sandbox.optimizers]
    for optimizer, apart in zip(sandbox.optimizers, decoupled, strict=True):
        for group in optimizer.param_groups:
            group.update(_weak(group, apart))
    return [replace(it, actions=[_weak_step(a, decoupled) for a in it.actions]) for it in iterations]


def _weak_step(action: Action, decoupled: list[str]) -> Action:
    if action.kind != "step":
        return action
    options = tuple({**group, **_weak(group, decoupled[action.optimizer])} for group in action.options)
    return replace(action, options=options)


def _weak(group: dict[str, Any], optimizer: str) -> dict[str, float]:
    return {"weight_decay": weaker(float(group["weight_decay"]), optimizer)} if group.get("weight_decay") else {}


def _decoupled(optimizer: Any) -> str:
    """The optimizer's type, as `weaker` reads it: Adam with `decoupled_weight_decay` is an AdamW."""
    name = type(optimizer).__name__
    apart = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    return "AdamW" if apart and name not in DECOUPLED else name
