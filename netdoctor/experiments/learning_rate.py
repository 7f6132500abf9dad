"""Does another learning rate train where the script's own does not? Same start, same batches, same random states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from netdoctor.capture.step import TrainingStep
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Run, Sandbox, quiet
from netdoctor.recording import Arm

STEPS = 60  # enough for a trend over noise (trend.py asks for 30), short enough to be run five times
FACTORS = (0.1, 10.0, 0.01, 100.0)  # nearest first: a budget that runs out has answered the likeliest question


def trials(step: TrainingStep, budget: Budget, say: Callable[[str], None], steps: int = STEPS) -> dict[str, Arm]:
    """The arms "trial/control" and "trial/lr xF" for each factor F. An arm that cannot run carries the reason."""
    arms: dict[str, Arm] = {}
    for factor in (1.0, *FACTORS):
        name = "trial/control" if factor == 1.0 else f"trial/lr x{factor:g}"
        if budget.left <= 0:
            break
        say("learning rate as it is" if factor == 1.0 else f"learning rate x{factor:g}")
        arms[name] = _arm(step, name, factor, budget.share(budget.left / 2), steps)
        if arms[name].failure:
            break  # what stops one of them stops them all
    return arms


def _arm(step: TrainingStep, name: str, factor: float, budget: Budget, steps: int) -> Arm:
    try:
        with quiet():
            sandbox = Sandbox(step, lr_factor=factor)
            lr = _largest_lr(step) * factor
            run = sandbox.run(step.iterations, steps, budget)
    except CannotReplayError as error:
        return Arm(name, np.empty(0), failure=str(error))
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    return _told(name, run, lr)


def _told(name: str, run: Run, lr: float) -> Arm:
    return Arm(name, np.asarray(run.losses), run.seconds, {"lr": lr, "ended": run.ended})


def _largest_lr(step: TrainingStep) -> float:
    """The learning rate that the script means: the largest of the captured steps, as a warm-up starts near zero."""
    seen = [lr for it in step.iterations for action in it.actions if action.kind == "step" for lr in action.lrs[:1]]
    if seen:
        return max(seen)
    return float(step.optimizers[0].groups[0].get("lr", float("nan"))) if step.optimizers else float("nan")
