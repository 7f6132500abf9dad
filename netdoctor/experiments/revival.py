"""Would the trained model have learned more, had its learning rate not come to nothing so early?"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch

from netdoctor.capture.step import Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward
from netdoctor.checks.training.decay import decay
from netdoctor.checks.training.lr_decays_too_fast import LrDecaysTooFast
from netdoctor.checks.training.revived import AS_IT_ENDED, FEWEST_STEPS, REVIVED
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.held_out import FEWEST, evaluating
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm, Recording

STEPS, EVERY = 240, 10  # training steps, and how often the held-out batches are asked
SHARE = 1 / 3  # of the highest rate: alive, and no rate that trained once is too high at a third of it


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "revival/as it ended" and "revival/a third of the highest rate"; none unless the rate came to nothing early.

    The trained model goes on over two thirds of the captured batches, with the optimizer's state as it ended, at the rate
    that it ended with or at a third of its highest one, which falls to nothing over the second half. Losses: those of the
    last third, in evaluation mode, every `EVERY` steps. Facts: "lr", "steps" (taken until the last of the losses), "before" and
    "after" (mean loss of the batches that were trained on).
    """
    found = decay(recording, LrDecaysTooFast.low)
    if found is None or found.left < LrDecaysTooFast.left or recording.loss is None:
        return {}
    moving = recording.facts.get("moving_target") or recording.facts.get("several_optimizers")
    if moving or recording.origin is not None or step.lost or len(step.optimizers) != 1:
        return {}
    if len(step.iterations) < FEWEST:
        return {REVIVED: Arm(REVIVED, np.empty(0), failure=f"fewer than {FEWEST} batches were captured")}
    steps = min(STEPS, found.last - found.low)  # no more than the run had left
    revived = _arm(REVIVED, step, SHARE * found.top, steps, budget.share(budget.left / 2))
    if revived.failure:
        return {REVIVED: revived}
    return {REVIVED: revived, AS_IT_ENDED: _arm(AS_IT_ENDED, step, None, revived.steps, budget)}


def _arm(name: str, step: TrainingStep, rate: float | None, steps: int, budget: Budget) -> Arm:
    began = time.perf_counter()
    try:
        with quiet():
            sandbox = Sandbox(as_it_ended(step))
            losses, facts = _go_on(sandbox, rate, steps, budget)
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    taken = int(facts["steps"])
    if not np.isfinite(losses).all():
        return Arm(name, np.empty(0), failure="the loss became NaN or Inf on the copy")
    if taken < FEWEST_STEPS:
        return Arm(name, np.empty(0), failure=f"{taken} steps were all that there was time for")
    says = f"loss {losses[0]:.4g} → {losses[-1]:.4g} on held-out batches in {taken} more steps at {facts['lr']:.3g}"
    return Arm(name, np.asarray(losses), time.perf_counter() - began, {**facts, "says": says})


def as_it_ended(step: TrainingStep) -> TrainingStep:
    """The training as it is now: copies are of the trained weights, and optimizers remember what they had gathered."""
    starts = [replace(s, state={id(p): kept for p, kept in s.optimizer.state.items()}) for s in step.optimizers]
    return replace(step, starts={}, verified=True, optimizers=starts)


def _go_on(
    sandbox: Sandbox, rate: float | None, steps: int, budget: Budget
) -> tuple[list[float], dict[str, float | str | bool]]:
    iterations = sandbox.step.iterations
    cut = len(iterations) - len(iterations) // 3
    train, held = iterations[:cut], [iteration.backwards[0] for iteration in iterations[cut:]]
    rates, whole = _rates(sandbox, rate), budget.left
    before = _level(sandbox, _first(train))
    losses = [_level(sandbox, held)]
    done = 0
    for number in range(steps):
        if budget.left <= 0:
            break
        left = min(1 - number / steps, budget.left / whole)  # the rate comes to its end before the time does
        _set(sandbox, rates, 1.0 if rate is None else min(1.0, 2 * left))
        if not math.isfinite(sandbox.iterate(train[number % len(train)], first_pass=False)):
            losses.append(math.inf)
            done = number + 1
            break
        if (number + 1) % EVERY == 0:
            losses.append(_level(sandbox, held))
            done = number + 1
    facts: dict[str, float | str | bool] = {"lr": rates[0], "steps": float(done), "before": before}
    return losses, {**facts, "after": _level(sandbox, _first(train))}


def _first(iterations: list[Iteration]) -> list[Backward]:
    return [iteration.backwards[0] for iteration in iterations]


def _rates(sandbox: Sandbox, rate: float | None) -> list[float]:
    """The rate of each group: as it ended, or `rate` for the first one and the others in proportion to their highest rates."""
    start = sandbox.step.optimizers[0]
    if rate is None:
        return [float(group.get("lr", math.nan)) for group in start.optimizer.param_groups]
    seen = [a.lrs for it in sandbox.step.iterations for a in it.actions if a.kind == "step" and a.lrs]
    highest = [max(lrs) for lrs in zip(*seen, strict=True)]
    if not highest or highest[0] <= 0:
        raise CannotReplayError("the learning rates of the captured steps are not known")
    return [rate * each / highest[0] for each in highest]


def _set(sandbox: Sandbox, rates: list[float], factor: float) -> None:
    for group, rate in zip(sandbox.optimizers[0].param_groups, rates, strict=True):
        group["lr"] = rate * factor


@torch.no_grad()
def _level(sandbox: Sandbox, batches: list[Backward]) -> float:
    """The mean loss of some captured batches in evaluation mode."""
    for backward in batches:
        refuse_overwritten(backward)
    return float(np.mean([float(Replay(sandbox.copies).loss(evaluating(backward))) for backward in batches]))
