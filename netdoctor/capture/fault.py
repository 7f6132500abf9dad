"""The step that made the first NaN or Inf, kept with the weights from before its update: a trial of the safe form runs on it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.step import Action, Iteration, OptimizerStart, TrainingStep
from netdoctor.capture.tape import Backward
from netdoctor.capture.watch import is_bad


def faulty_step(begun: TrainingStep, backwards: list[Backward], step: int) -> TrainingStep | None:
    """The running step (number `step`), followed by the training's first steps, which are `begun`; None where it cannot be kept.

    Must be called before the optimizer touches the weights. Copies of weights, buffers and optimizer states are kept.
    A loop that moves its weights without a torch optimizer gives None: its rule is read off its first steps alone.
    """
    if begun.lost or not backwards or not begun.optimizers:
        return None
    starts = dict(_values(begun))
    optimizers = [_as_it_is(start) for start in begun.optimizers]
    faulty = Iteration(_actions(begun.iterations, backwards, [start.optimizer for start in optimizers]))
    rest = [iteration for iteration in begun.iterations if iteration.backwards[0] is not backwards[0]]
    return replace(begun, iterations=[faulty, *rest], optimizers=optimizers, starts=starts, verified=True, begins=step)


def _values(begun: TrainingStep) -> Iterable[tuple[int, tuple[Tensor, Tensor]]]:
    """Everything that trains, as it is now. Statistics that the pass itself has put its NaN into are those of the start."""
    held: list[Tensor] = [t for m in begun.modules for t in (*m.parameters(), *m.buffers())]
    for tensor in {id(t): t for t in (*held, *begun.leaves)}.values():
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            continue
        known = begun.starts.get(id(tensor))
        if known is not None and not tensor.requires_grad and any(is_bad(tensor)):
            yield id(tensor), known
            continue
        with torch.no_grad():
            yield id(tensor), (tensor, tensor.detach().clone().requires_grad_(tensor.requires_grad))


def _as_it_is(start: OptimizerStart) -> OptimizerStart:
    optimizer = start.optimizer
    groups = [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    parameters = [list(group["params"]) for group in optimizer.param_groups]
    state: dict[int, Any] = {id(tensor): copy.deepcopy(entry) for tensor, entry in optimizer.state.items()}
    return OptimizerStart(optimizer, groups, parameters, state)


def _actions(known: list[Iteration], backwards: list[Backward], optimizers: list[Optimizer]) -> list[Action]:
    """What the loop does in such a step: as in the last captured one that is like it, else backward and step."""
    like = next((i for i in reversed(known) if len(i.backwards) == len(backwards)), None)
    if like is None:
        return [
            *(Action("backward", backward) for backward in backwards),
            *(Action("step", optimizer=index) for index in range(len(optimizers))),
        ]
    found, of_this_step = [], iter(backwards)
    for action in like.actions:
        if action.backward is not None:
            action = replace(action, backward=next(of_this_step))
        elif action.kind == "step" and action.optimizer < len(optimizers):
            rates = tuple(float(group.get("lr", 0.0)) for group in optimizers[action.optimizer].param_groups)
            action = replace(action, lrs=rates, options=())
        found.append(action)
    return found
