"""Terms of a loss that compare nothing with data: a divergence from a prior, a penalty on activations, a balance of experts.

Does a training learn from its data where such a term counts little?
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from netdoctor.capture.step import Iteration, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Constant, Entry, Slot
from netdoctor.checks.training.side_term import AS_IT_IS, LESS, UNFIT
from netdoctor.errors import why_it_failed
from netdoctor.experiments.loss_terms import watched_terms
from netdoctor.experiments.sandbox import Budget, Edit, Sandbox, quiet
from netdoctor.experiments.score import fits
from netdoctor.experiments.unblocking import NoDropout
from netdoctor.recording import Arm, Recording

STEPS = 180  # an autoencoder needs more than a classifier to leave the average behind
LITTLE = (
    0.001  # of a side term, as the fix says: a mean over pixels makes the other term smaller by as many as there are
)
BATCHES = 12  # of the captured ones: what is left is measured on them
_ADDS = frozenset({"add", "iadd", "radd", "sub", "isub", "rsub"})
# What a sum of terms may go through on its way to the loss.
_THROUGH = _ADDS | {"mul", "rmul", "imul", "div", "truediv", "neg", "mean", "sum"}
_MODEL, _SIDE, _DATA = "model", "side", "data"  # what a value is made of: a module's output, only that, or a comparison


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "side-terms/as it is" and "side-terms/with little of them", both from the start of the training.

    Facts: `left`, what the terms that compare with data leave of the loss of the best constant prediction at the end; `ended`.
    Only where a side term is added to them and the trained model is no better than a constant prediction.
    """
    if recording.origin is not None or step.lost or not step.iterations:
        return {}
    try:
        little = weighed(step.iterations, LITTLE)
        if little is None:
            return {}
        with quiet():
            trained = left_of_constant(Sandbox(replace(step, starts={}, verified=True)))
        if not trained >= UNFIT:  # NaN compares false
            return {}
        plain = _arm(AS_IT_IS, step, None, budget.share(budget.left / 2))
        return {arm.name: arm for arm in (plain, _arm(LESS, step, little, budget))}
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {AS_IT_IS: Arm(AS_IT_IS, np.empty(0), failure=why_it_failed(error))}


def _arm(name: str, step: TrainingStep, edit: Edit | None, budget: Budget) -> Arm:
    with quiet():
        sandbox = Sandbox(step)
        sandbox.edit = edit
        run = sandbox.run(step.iterations, STEPS, budget)
        left = left_of_constant(sandbox)
    says = f"{100 * left:.0f} % of what a constant prediction leaves is left after {len(run.losses)} steps"
    return Arm(name, np.asarray(run.losses), run.seconds, {"left": left, "ended": run.ended, "says": says})


def weighed(iterations: Iterable[Iteration], factor: float) -> Edit | None:
    """An edit that multiplies by `factor` each side term that is added to a comparison with data; None where there is none."""
    sides = {number for it in iterations for backward in it.backwards for number in _sides(backward.entries)}
    if not sides:
        return None

    def edit(entry: Entry, args: Any, kwargs: Any) -> tuple[Any, Any]:
        slots = _slots(entry)
        if entry.name.strip("_") not in _ADDS or sides.isdisjoint(slots):
            return args, kwargs
        return tuple(a * factor if n in sides else a for a, n in zip(args, slots, strict=True)), kwargs

    return edit


@torch.no_grad()
def left_of_constant(sandbox: Sandbox) -> float:
    """What the terms that compare with data leave, of what the best constant prediction leaves: the mean over some captured
    batches, dropout off. NaN where no term is known."""
    shares = []
    for backward in (backward for iteration in sandbox.step.iterations[:BATCHES] for backward in iteration.backwards):
        refuse_overwritten(backward)
        with NoDropout():
            found = fits(watched_terms(sandbox.copies, backward)[1], 1)
        constant = sum(fit.constant for fit in found)
        if constant > 0:
            shares.append(sum(fit.measure for fit in found) / constant)
    return float(np.mean(shares)) if shares else math.nan


def _slots(entry: Entry) -> list[int | None]:
    encoded = entry.args if isinstance(entry.args, tuple) else ()
    return [arg.number if isinstance(arg, Slot) else None for arg in encoded]


def _sides(entries: list[Entry]) -> set[int]:
    """The slots that hold a side term, and are added to something that was compared with data on the way to the loss."""
    kinds: dict[int, str] = {}
    found: set[int] = set()
    readers: dict[int, list[Entry]] = {}
    for entry in entries:
        for number in entry.inputs():
            readers.setdefault(number, []).append(entry)
        kind = _kind(entry, kinds)
        if kind:
            kinds.update(dict.fromkeys(entry.outputs, kind))
    for entry in entries:
        slots = _slots(entry)
        of = [kinds.get(number, "") if number is not None else "" for number in slots]
        added = entry.module is None and entry.name.strip("_") in _ADDS and len(slots) == 2
        if added and sorted(of) in ([_DATA, _SIDE], [_DATA, _MODEL]) and _ends(entry, readers):
            found.update(n for n, kind in zip(slots, of, strict=True) if n is not None and kind != _DATA)
    return found


def _kind(entry: Entry, kinds: dict[int, str]) -> str:
    if entry.module is not None:
        return _MODEL
    items = entry.meanings()
    of = {kinds.get(number, "") for number in entry.inputs()}
    if _DATA in of or any(isinstance(item, Constant) and _varies(item) for item in items):
        return _DATA
    return _SIDE if of & {_MODEL, _SIDE} else ""


def _varies(constant: Constant) -> bool:
    """Whether a tensor holds more than one value, as data does."""
    tensor = constant.tensor
    return tensor.numel() > 1 and not bool((tensor == tensor.reshape(-1)[0]).all())


def _ends(entry: Entry, readers: dict[int, list[Entry]]) -> bool:
    """Whether nothing is made of a sum but the loss: further sums, means and weights."""
    queue, seen = [entry], set()
    while queue:
        one = queue.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.module is not None or one.name.strip("_") not in _THROUGH:
            return False
        queue.extend(reader for number in one.outputs for reader in readers.get(number, ()))
    return True
