"""Does a step make the loss on its own batch larger? What a minibatch's noise explains is not a step's fault."""

from __future__ import annotations

import math
import time

import numpy as np

from netdoctor.capture.step import Iteration, Replay, TrainingStep
from netdoctor.checks.training.jumps import late_noise
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm, Recording
from netdoctor.trend import judge

STEPS = 48  # twice through the captured batches, or more often through fewer
FACTORS = (1.0, 0.1)
NOISY = 0.2  # of the loss, from step to step: quieter training is left in peace (unstable-loss asks for more)


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms of `rises`, where the loss of the run jumps about, and is of one kind that is meant to fall."""
    moving = recording.facts.get("moving_target") or recording.facts.get("several_optimizers")
    if moving or step.lost or not step.iterations or late_noise(recording) < NOISY or judge(recording).failing:
        return {}
    return rises(step, budget)


def rises(step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "stability/own" and "stability/lr x0.1": the loss of each batch before its step, and as the curve "after" the
    loss of that very batch after it, with the same random numbers. An arm that cannot run carries the reason."""
    arms: dict[str, Arm] = {}
    for factor in FACTORS:
        name = "stability/own" if factor == 1.0 else f"stability/lr x{factor:g}"
        arms[name] = _arm(step, name, factor, budget.share(budget.left / (2 if factor == 1.0 else 1)))
        if arms[name].failure:
            break
    return arms


def _arm(step: TrainingStep, name: str, factor: float, budget: Budget) -> Arm:
    began = time.perf_counter()
    before: list[float] = []
    after: list[float] = []
    try:
        with quiet():
            sandbox = Sandbox(step, lr_factor=factor)
            for number in range(STEPS):
                iteration = step.iterations[number % len(step.iterations)]
                if budget.left <= 0 or not _one(sandbox, iteration, number < len(step.iterations), before, after):
                    break
    except CannotReplayError as error:
        return Arm(name, np.empty(0), failure=str(error))
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    share = float(np.mean(np.asarray(after) > np.asarray(before))) if after else 0.0
    facts: dict[str, float | str | bool] = {
        "factor": factor,
        "says": f"{100 * share:.0f} % of {len(after)} steps made the loss on their own batch larger",
    }
    return Arm(name, np.asarray(before), time.perf_counter() - began, facts, {}, {"after": np.asarray(after)})


def _one(sandbox: Sandbox, iteration: Iteration, first: bool, before: list[float], after: list[float]) -> bool:
    """One step, and the loss of its batch again; False when a loss is not finite."""
    old = sandbox.iterate(iteration, first)
    if not math.isfinite(old):
        return False
    new = sum(float(Replay(sandbox.copies).loss(b, sandbox.edit).detach()) for b in iteration.backwards)
    before.append(old)
    after.append(new if math.isfinite(new) else math.inf)
    return math.isfinite(new)
