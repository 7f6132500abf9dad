"""Does the training go on where weight decay, or a penalty in the loss, is taken out of it?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from netdoctor.capture.step import Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.checks.training.pull import loss_left, pulls
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, Edit, Sandbox, quiet
from netdoctor.experiments.unblocking import NoDropout, unpenalised
from netdoctor.recording import Arm, Recording

STEPS = 60
AHEAD, LONGER = (
    0.1,
    3,
)  # of the loss that a copy without it is ahead by: where that is not yet much, times as many steps
MUCH = 0.3  # of the loss: over-regularised asks for so much
BATCHES = 12  # of the captured ones: what the loss is measured on
PENALTY = 0.2  # of the loss: less does not dominate anything
LEFT = 0.2  # of the loss: under it there is little that regularisation could keep from falling
PULL = 0.1  # of the gradient's: under it decay is a small correction (over-regularised asks for more)
Change = Callable[[Sandbox], object]


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "regularisation/as it is" and "regularisation/without weight decay" or "... penalty": the trained model goes on
    for some steps on the captured batches, from fresh optimizer states.

    Facts: `data` and `total`, the mean loss afterwards without and with penalties, dropout off; `before`, `data` from before.
    Only where a good part of the loss is left, and decay pulls about as much as the gradient, or there is a penalty.
    """
    if recording.origin is not None or step.lost or not step.iterations:
        return {}
    late = replace(step, starts={}, verified=True)  # the copies are of the weights as they are now
    changes: dict[str, Change] = {"as it is": lambda _: None}
    arms: dict[str, Arm] = {}
    try:
        edit = unpenalised(step.iterations)
        pull = sorted(pulls(recording).values())
        if pull and pull[len(pull) // 2] >= PULL and loss_left(recording) >= LEFT:
            changes["without weight decay"] = _stop_decaying
        if _penalised(step, late, edit):
            changes["without penalty"] = lambda sandbox: setattr(sandbox, "edit", edit)
        for steps in (STEPS, LONGER * STEPS) if len(changes) > 1 else ():
            if arms and not _undecided(arms):
                break
            for name, change in changes.items():
                share = budget.share(budget.left / (4 if steps == STEPS else 2))
                arm = _arm(f"regularisation/{name}", late, change, edit, share, steps)
                arms[arm.name] = arm
    except (
        Exception
    ) as error:  # also what does not fit together any more with other weights: that is an answer, not a fault
        return {"regularisation/as it is": Arm("regularisation/as it is", np.empty(0), failure=why_it_failed(error))}
    return arms


def _undecided(arms: dict[str, Arm]) -> bool:
    """Whether a copy without regularisation is ahead of that with it, as weights that it pulled to nothing grow slowly."""
    data = {name: float(arm.facts["data"]) for name, arm in arms.items()}
    control = data.pop("regularisation/as it is")
    gained = [1 - value / control for value in data.values()] if control > 0 else []
    return max(gained, default=0.0) >= AHEAD and max(gained) < MUCH


def _arm(name: str, step: TrainingStep, change: Change, edit: Edit, budget: Budget, steps: int) -> Arm:
    with quiet():
        sandbox = Sandbox(step)
        before = _level(sandbox, edit)
        change(sandbox)
        run = sandbox.run(step.iterations, steps, budget)
        facts: dict[str, float | str | bool] = {
            "data": _level(sandbox, edit),
            "total": _level(sandbox, None),
            "before": before,
            "ended": run.ended,
        }
    says = f"loss without penalties {before:.3g} → {float(facts['data']):.3g} in {len(run.losses)} more steps"
    return Arm(name, np.asarray(run.losses), run.seconds, {**facts, "says": says})


def _stop_decaying(sandbox: Sandbox) -> None:
    sandbox.pinned["weight_decay"] = 0.0
    for group in (group for optimizer in sandbox.optimizers for group in optimizer.param_groups):
        group["weight_decay"] = 0.0


def _penalised(step: TrainingStep, late: TrainingStep, edit: Edit) -> bool:
    """Whether penalties are a good part of the loss by now, and a good part of the rest is left too."""
    with quiet():
        now = Sandbox(late)
        total, data = _level(now, None), _level(now, edit)
        start = _level(Sandbox(step), edit) if total - data >= PENALTY * abs(total) else math.inf
    return math.isfinite(total) and data >= LEFT * start


def _level(sandbox: Sandbox, edit: Edit | None) -> float:
    return mean_loss(sandbox, sandbox.step.iterations[:BATCHES], edit)


@torch.no_grad()
def mean_loss(sandbox: Sandbox, iterations: list[Iteration], edit: Edit | None = None) -> float:
    """The mean loss of some captured batches, dropout off."""
    losses = []
    for backward in (backward for iteration in iterations for backward in iteration.backwards):
        refuse_overwritten(backward)
        with NoDropout():
            losses.append(float(Replay(sandbox.copies).loss(backward, edit).detach()))
    return float(np.mean(losses)) if losses else math.nan
