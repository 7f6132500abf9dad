"""Does standardising the inputs, or the targets, train where the script as it is does not? Same start, same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import TrainingStep
from netdoctor.capture.tape import Constant, Entry, walk
from netdoctor.capture.tree import substitute
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.learning_rate import STEPS
from netdoctor.experiments.sandbox import Budget, Edit, Sandbox, quiet
from netdoctor.recording import Arm

REGRESSION = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "sub", "rsub", "__sub__", "__rsub__"})
LARGE, SMALL = 5.0, 0.02  # root mean squares outside of which a tensor is worth a trial
OFFSET = 5.0  # standard deviations that the mean lies from zero
SPREAD = 100.0  # between the standard deviations of two columns
Found = Iterator[tuple[str, Constant]]


@dataclass(frozen=True, slots=True)
class _Scale:
    """What standardises a tensor, broadcastable to it."""

    mean: Tensor
    std: Tensor

    def apply(self, tensor: Tensor) -> Tensor:
        return ((tensor - self.mean.to(tensor)) / self.std.to(tensor)).to(tensor.dtype)


def trials(step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "scaling/input" and "scaling/target", each where the captured batches are far from standardised.

    Facts: `lr`, `ended`, `before` and `after` (root mean square of what was scaled).
    """
    arms: dict[str, Arm] = {}
    for what, find in (("input", _inputs), ("target", _targets)):
        try:
            groups = _groups(step, find)
        except Exception as error:  # a tensor of a kind that cannot be pooled is an answer, not a fault
            arms[f"scaling/{what}"] = Arm(f"scaling/{what}", np.empty(0), failure=f"{type(error).__name__}: {error}")
            continue
        wanted = {key: tensors for key, tensors in groups.items() if _unscaled(tensors)}
        if wanted and budget.left > 0:
            say(f"standardising the {what}")
            arms[f"scaling/{what}"] = _arm(step, what, wanted, budget.share(budget.left / 2))
    return arms


def _groups(step: TrainingStep, find: Callable[[Entry], Found]) -> dict[str, list[Tensor]]:
    """The tensors of all captured iterations, by where they go in."""
    groups: dict[str, list[Tensor]] = {}
    for iteration in step.iterations:
        for entry in {id(e): e for backward in iteration.backwards for e in backward.entries}.values():
            for key, constant in find(entry):
                if constant.tensor.is_floating_point() and constant.tensor.dim() and not constant.overwritten:
                    groups.setdefault(key, []).append(constant.tensor.detach())
    return groups


def _inputs(entry: Entry) -> Found:
    if entry.module is not None:
        found: list[Constant] = []
        walk((entry.args, entry.kwargs), lambda item: found.append(item) if isinstance(item, Constant) else None)
        for place, constant in enumerate(found):
            yield f"{id(entry.module)}.{place}.{constant.tensor.dim()}", constant


def _targets(entry: Entry) -> Found:
    if entry.module is None and entry.name in REGRESSION:
        given = [*entry.args[:2], entry.kwargs.get("target")]
        for item in given:
            if isinstance(item, Constant):
                yield f"{entry.name}.{entry.position}", item


def _columns(tensor: Tensor) -> Tensor:
    """(rows, columns): the last dimension, or dimension 1 of images; one column for a vector."""
    if tensor.dim() == 1:
        return tensor[:, None]
    moved = tensor.movedim(1, -1) if tensor.dim() >= 4 else tensor
    return moved.reshape(-1, moved.shape[-1])


def _unscaled(tensors: list[Tensor]) -> bool:
    rows = _columns(tensors[0]).double()
    if not bool(torch.isfinite(rows).all()):
        return False
    rms, std, mean = float(rows.square().mean()) ** 0.5, float(rows.std(unbiased=False)), abs(float(rows.mean()))
    each = rows.std(0, unbiased=False)
    each = each[each > 0]
    uneven = each.numel() > 1 and float(each.max() / each.min()) > SPREAD
    return rms > 0 and (rms > LARGE or rms < SMALL or (std > 0 and mean > OFFSET * std) or uneven)


def _scale(tensors: list[Tensor]) -> _Scale:
    """Mean and standard deviation per column over all batches; a column that never varies is only centred."""
    rows = torch.cat([_columns(tensor).double() for tensor in tensors if tensor.dim() == tensors[0].dim()])
    mean, std = rows.mean(0), rows.std(0, unbiased=False)
    std = torch.where(std > 1e-12 * rows.abs().amax(0), std, torch.ones_like(std))
    if tensors[0].dim() >= 4:
        shape = (-1, *[1] * (tensors[0].dim() - 2))
        mean, std = mean.reshape(shape), std.reshape(shape)
    return _Scale(mean, std)


def _edit(wanted: dict[str, list[Tensor]]) -> Edit:
    scales: dict[int, tuple[Tensor, _Scale]] = {}
    for tensors in wanted.values():
        scale = _scale(tensors)
        scales |= {tensor.data_ptr(): (tensor, scale) for tensor in tensors}

    def one(tensor: Tensor) -> Tensor:
        known = scales.get(tensor.data_ptr()) if not tensor.requires_grad else None
        return known[1].apply(tensor) if known is not None and known[0].shape == tensor.shape else tensor

    def edit(entry: Entry, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if entry.module is None and entry.name not in REGRESSION:
            return args, kwargs
        changed: tuple[Any, Any] = substitute((args, kwargs), one)
        return changed

    return edit


def _arm(step: TrainingStep, what: str, wanted: dict[str, list[Tensor]], budget: Budget) -> Arm:
    name = f"scaling/{what}"
    pooled = torch.cat([tensor.reshape(-1).double() for tensors in wanted.values() for tensor in tensors])
    before = math.sqrt(float(pooled.square().mean()))
    try:
        with quiet():
            run = Sandbox(step, edit=_edit(wanted)).run(step.iterations, STEPS, budget)
    except CannotReplayError as error:
        return Arm(name, np.empty(0), failure=str(error))
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        return Arm(name, np.empty(0), failure=f"{type(error).__name__}: {error}"[:200])
    losses = np.asarray(run.losses)
    if not losses.size:
        return Arm(name, losses, failure="no time was left for it")
    says = f"the {what} of scale {before:.3g} standardised: loss {losses[0]:.3g} → {losses[-1]:.3g} in {losses.size} steps"
    return Arm(name, losses, run.seconds, {"ended": run.ended, "before": before, "after": 1.0, "says": says})
