"""What a changed copy learns from some captured batches, measured on others that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Entry
from netdoctor.errors import why_it_failed
from netdoctor.experiments.adam import Adam
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm

STEPS, EVERY = 240, 20  # training steps, and how often the held-out batches are asked
RATES = (2e-3, 1e-2)  # of Adam: the better one counts, so that neither arm wins by its learning rate
FEWEST = 6  # captured batches: a third of them is held out
Change = Callable[[Sandbox], None]


def learn(name: str, step: TrainingStep, change: Change, budget: Budget) -> Arm:
    """An arm whose losses are those of the held-out batches, every `EVERY` steps, after `change` was made to the copy.

    Two thirds of the captured batches are trained on with Adam, the last third is held out. `change` is made before the
    optimizer. Facts: "best" (the lowest held-out loss), "train" (the last training loss), "lr", "steps" (taken
    until the last of the losses).
    """
    if len(step.iterations) < FEWEST:
        return Arm(name, np.empty(0), failure=f"fewer than {FEWEST} batches were captured")
    runs = [
        _run(name, step, change, rate, budget.share(budget.left / (len(RATES) - n))) for n, rate in enumerate(RATES)
    ]
    done = [arm for arm in runs if not arm.failure]
    return min(done, key=lambda arm: float(arm.facts["best"])) if done else runs[0]


def _run(name: str, step: TrainingStep, change: Change, rate: float, budget: Budget) -> Arm:
    cut = len(step.iterations) - len(step.iterations) // 3
    train, held = step.iterations[:cut], [iteration.backwards[0] for iteration in step.iterations[cut:]]
    losses: list[float] = []
    try:
        with quiet():
            for backward in held:
                refuse_overwritten(backward)
            sandbox = Sandbox(step, optimizer=lambda ps: Adam(ps, lr=rate))
            change(sandbox)
            optimizer = trainable_with_adam(sandbox, rate)
            last = float("nan")
            for number in range(STEPS + 1):
                if budget.left <= 0:
                    break
                if number % EVERY == 0:
                    losses.append(_loss(sandbox.copies, held))
                optimizer.zero_grad()
                last = sandbox.iterate(train[number % len(train)])
    except Exception as error:
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    if len(losses) < 2:
        return Arm(name, np.empty(0), failure="no time was left for it")
    if not np.isfinite(losses[1:]).any():  # what the weights of before the first step give is nothing that was learned
        return Arm(name, np.empty(0), failure=f"its loss is not finite after {EVERY} steps")
    best = float(np.nanmin(losses))
    says = f"best loss {best:.4g} on held-out batches"
    facts: dict[str, float | str | bool] = {"best": best, "train": last, "lr": rate, "says": says}
    facts["steps"] = float(EVERY * (len(losses) - 1))
    return Arm(name, np.asarray(losses), budget.spent, facts)


def trainable_with_adam(sandbox: Sandbox, rate: float) -> torch.optim.Optimizer:
    """Adam over what trains now, whatever the change put in place of the old parameters included."""
    held: dict[int, Tensor] = {id(p): p for module in sandbox.modules() for p in module.parameters() if p.requires_grad}
    held |= {id(p): p for p in sandbox.trainable()}
    sandbox.optimizers = [Adam(held.values(), lr=rate)]
    return sandbox.optimizers[0]


@torch.no_grad()
def _loss(copies: Copies, held: list[Backward]) -> float:
    """The mean loss of the held-out batches in evaluation mode."""
    return float(np.mean([float(Replay(copies).loss(evaluating(backward))) for backward in held]))


def evaluating(backward: Backward) -> Backward:
    """The backward with all modules in evaluation mode, and without a graph."""

    def switched(entry: Entry) -> Entry:
        context = entry.context and replace(entry.context, grad=False)
        return replace(entry, modes=(False,) * len(entry.modes), context=context)

    return replace(backward, entries=[switched(entry) for entry in backward.entries])
