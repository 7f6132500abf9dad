"""Which parts of its inputs does the trained model read? Taken from other samples, what it ignores changes nothing."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant, Entry, walk
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.tiny_batch import rewrite
from netdoctor.recording import Arm, Recording

MAX_INPUTS, MAX_SLICES = 6, 4096
BATCHES = 3  # captured ones in all of which a part must be without influence
POSITIONS = 24  # of a sequence of tokens that are tried one by one
PREFIX = "usage/"


def usage(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """One arm "usage/<n>" per tensor that the first model call is given, as the training left the model.

    Facts: "argument" (its name in `forward`), "axes" (number of dimensions), "tokens" (no floats), "whole" (True: the
    whole tensor varies over the batch and has no influence on the loss). Curves "axis <a>": one entry per index along
    dimension a, 1 where that slice varies and has no influence, 0 where it has, NaN where it does not vary. A float
    tensor is asked by its gradient first, then by taking the slices from other samples.
    """
    arms: dict[str, Arm] = {}
    try:
        with quiet():
            if any(len({b.position for b in iteration.backwards}) > 1 for iteration in step.iterations[:BATCHES]):
                return {}  # what one loss ignores another may read
            backwards = [iteration.backwards[0] for iteration in step.iterations[:BATCHES]]
            for backward in backwards:
                refuse_overwritten(backward)
            copies = Copies(step.modules, step.leaves)  # as trained: a new head of zeros would hide everything
            for number in range(_count(backwards[0])):
                if budget.left <= 0:
                    break
                arms[f"{PREFIX}{number}"] = _look(copies, backwards, number)
    except Exception as error:
        arms[f"{PREFIX}{len(arms)}"] = Arm(PREFIX, np.empty(0), failure=why_it_failed(error))
    return arms


def first_call(backward: Backward) -> Entry | None:
    """The first call of a model."""
    return next((entry for entry in backward.entries if entry.module is not None), None)


def constants(backward: Backward) -> list[Constant]:
    """The tensors that the first call of a model is given, in order, without scalars and empty ones."""
    entry, found = first_call(backward), []
    if entry is not None:
        walk((entry.args, entry.kwargs), lambda item: found.append(item) if isinstance(item, Constant) else None)
    return [c for c in found if c.tensor.dim() > 0 and c.tensor.layout is torch.strided and c.tensor.numel()]


def _count(backward: Backward) -> int:
    return min(MAX_INPUTS, len(constants(backward)))


@dataclass(frozen=True, slots=True)
class _Trial:
    """One captured batch on a copy, and one of its inputs."""

    copies: Copies
    backward: Backward
    constant: Constant
    loss: float

    def changes(self, new: Tensor) -> bool:
        """Whether another value of the input gives another loss; a model that refuses it reads it."""
        try:
            return loss_of(self.copies, with_input(self.backward, self.constant, new)) != self.loss
        except Exception:
            return True


def _look(copies: Copies, backwards: list[Backward], number: int) -> Arm:
    began = time.perf_counter()
    trials = []
    for backward in backwards:
        given = constants(backward)
        if number < len(given):
            trials.append(_Trial(copies, backward, given[number], loss_of(copies, backward)))
    shape = trials[0].constant.tensor.shape
    trials = [trial for trial in trials if trial.constant.tensor.shape == shape]
    varying = [trial for trial in trials if _varies(trial.constant.tensor)]
    whole = bool(varying) and not any(trial.changes(exchanged(trial.constant.tensor)) for trial in varying)
    facts: dict[str, float | str | bool] = {"axes": float(len(shape)), "whole": whole}
    facts["argument"], facts["tokens"] = _argument(trials[0]), not trials[0].constant.tensor.is_floating_point()
    curves = {}
    for axis in range(1, len(shape)) if varying and not whole and shape.numel() else ():
        if shape[axis] > 1 and shape[axis] <= MAX_SLICES:
            curves[f"axis {axis}"] = _slices(varying, axis)
    ignored = sum(float(np.nansum(curve)) for curve in curves.values())
    facts["says"] = "no influence at all" if whole else f"{ignored:.0f} slices without influence" if ignored else "read"
    return Arm(f"{PREFIX}{number}", np.empty(0), time.perf_counter() - began, facts, {}, curves)


def _argument(trial: _Trial) -> str:
    """The name that `forward` has for the input; "" where it is not an argument by itself."""
    entry = first_call(trial.backward)
    if entry is None or entry.module is None:
        return ""
    named = [key for key, value in entry.kwargs.items() if value is trial.constant]
    places = [place for place, value in enumerate(entry.args) if value is trial.constant]
    taken = list(inspect.signature(entry.module.forward).parameters)
    return named[0] if named else taken[places[0]] if places and places[0] < len(taken) else ""


def _slices(trials: list[_Trial], axis: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Per index along an axis: 1 ignored, 0 read, NaN constant over the batch in all trials."""
    first = trials[0].constant.tensor
    moving = torch.stack([_moving(trial.constant.tensor, axis) for trial in trials]).any(0)
    if first.is_floating_point():
        silent = moving & torch.stack([_silent(trial, axis) for trial in trials]).all(0)
    else:
        silent = moving & _tried(trials, axis, moving)
    if bool(silent.any()) and any(trial.changes(exchanged(trial.constant.tensor, axis, silent)) for trial in trials):
        silent = torch.zeros_like(silent)  # read in a way that has no gradient
    result: np.ndarray[Any, np.dtype[np.float64]] = silent.double().cpu().numpy()
    result[~moving.cpu().numpy()] = np.nan
    return result


def _moving(tensor: Tensor, axis: int) -> Tensor:
    """Which slices along an axis differ between samples."""
    different = (tensor != tensor[:1]).movedim(axis, 0)
    return different.reshape(different.shape[0], -1).any(1)


def _silent(trial: _Trial, axis: int) -> Tensor:
    """Which slices of a float input have a gradient of exactly zero."""
    asked = trial.constant.tensor.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            loss = Replay(trial.copies).loss(with_input(trial.backward, trial.constant, asked))
        gradient: Tensor | None = torch.autograd.grad(loss, [asked], allow_unused=True)[0]
    except Exception:
        return torch.zeros(asked.shape[axis], dtype=torch.bool, device=asked.device)
    if gradient is None:
        return torch.ones(asked.shape[axis], dtype=torch.bool, device=asked.device)
    flat = gradient.movedim(axis, 0).reshape(asked.shape[axis], -1)
    return (flat == 0).all(1)


def _tried(trials: list[_Trial], axis: int, moving: Tensor) -> Tensor:
    """Which slices of an integer input change nothing when they are exchanged, one by one; of long ones every n-th is asked."""
    size = len(moving)
    silent = torch.zeros_like(moving)
    stride = max(1, -(-size // POSITIONS))
    for index in range(0, size, stride):
        one = torch.zeros_like(moving)
        one[index] = True
        if bool(moving[index]) and not any(t.changes(exchanged(t.constant.tensor, axis, one)) for t in trials):
            silent[index : index + stride] = True
    return silent


def _varies(tensor: Tensor) -> bool:
    return tensor.shape[0] > 1 and bool((tensor != tensor[:1]).any())


def exchanged(tensor: Tensor, axis: int = 0, which: Tensor | None = None) -> Tensor:
    """The tensor with the second half of its samples replaced by the first, or only some slices of them.

    A permutation would not do: a loss that compares nothing (a critic's, a likelihood) is the same in any order.
    """
    old = tensor.detach()
    places = torch.arange(len(old), device=old.device)
    rolled = old[places % max(1, len(old) // 2)]
    if bool((rolled == old).all()):
        rolled = old[(places - 1).clamp_min(0)]
    if which is None:
        return rolled
    shape = [1] * tensor.dim()
    shape[axis] = len(which)
    return torch.where(which.view(shape), rolled, old)


def with_input(backward: Backward, constant: Constant, new: Tensor) -> Backward:
    """The backward with another value for this very input of its model call."""
    entry = first_call(backward)

    def changed(item: Constant) -> Constant:
        return Constant(new, new._version) if item is constant else item

    def rewritten(old: Entry) -> Entry:
        if old is not entry:
            return old
        return replace(old, args=rewrite(old.args, changed), kwargs=rewrite(old.kwargs, changed))

    return replace(backward, entries=[rewritten(old) for old in backward.entries])


def loss_of(copies: Copies, backward: Backward) -> float:
    """The loss, without a graph."""
    with torch.no_grad():
        return float(Replay(copies).loss(_graded(backward)))


def _graded(backward: Backward) -> Backward:
    """The same calls without gradient; what a model does does not depend on it."""
    contexts = [replace(e, context=e.context and replace(e.context, grad=False)) for e in backward.entries]
    return replace(backward, entries=contexts)
