"""Treatments that the script's own evaluations judge: their captured passes are run again on a copy."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Replay, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant, Entry, walk
from netdoctor.experiments.final import ungraded
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments.batches import Columns, axis_of, kind_of, rows_of, scale_of
from netdoctor.experiments.treatments.treatment import (
    Bench,
    Case,
    Maker,
    Measure,
    Treatment,
    as_trained,
    with_constants,
)
from netdoctor.recording import Arm, Recording

RISE = 20.0  # %, as overfitting asks
EVALUATIONS = 40  # of a run
CONTROL = "held-out/as it is"
SECONDS = 8.0  # of one arm: what is not reached by then is not looked at
DECAY = 0.01  # of SGD and Adam, whose decay goes through the gradient
DECOUPLED = 0.1  # of AdamW
NEAR = 2.0  # times the loss on training batches: a held-out loss under it is of the same order
KEPT = 0.25  # of the first loss: less than this is most of the way


def _passes(case: Case) -> list[Backward]:
    """The captured evaluations of the finding's line, else those of all lines."""
    at = case.finding.location
    found = case.step.held.get((at.file or "", at.line or 0))
    return found or [backward for several in case.step.held.values() for backward in several]


@torch.no_grad()
def loss_of(copies: Copies, passes: Iterable[Backward]) -> float:
    """The mean loss of some evaluations, in evaluation mode, on copies as they are now."""
    losses = []
    for backward in passes:
        refuse_overwritten(backward)
        entries = [ungraded(replace(entry, modes=(False,) * len(entry.modes))) for entry in backward.entries]
        losses.append(float(Replay(copies).loss(replace(backward, entries=entries))))
    return float(np.mean(losses)) if losses else math.nan


# --- overfitting -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Course:
    """Trains a copy as long as the script did, or as time allows, and asks the evaluations now and then.

    The control is the recording's arm "held-out/as it is"; treated copies take as many steps, and are compared with its
    best evaluation.
    """

    recording: Recording
    passes: list[Backward]
    keep_best: bool

    def above_best(self, bench: Bench) -> float:
        """By which part the held-out loss lies above the control's best in the end, in percent."""
        control = self.recording.arms.get(CONTROL)
        if control is None:  # the first arm of all is one
            found, steps = self._train(bench, self.recording.steps, min(SECONDS, bench.seconds))
            control = Arm(CONTROL, np.asarray(found), 0.0, {"steps": float(steps), "best": min(found), "says": ""})
            self.recording.arms[CONTROL] = control
        end, best = float(control.losses[-1]), float(control.facts["best"])
        if bench.notes:
            end = self._train(bench, int(float(control.facts["steps"])), math.inf)[0][-1]
        return 100 * (end - best) / abs(best) if best else math.nan

    def _train(self, bench: Bench, steps: int, seconds: float) -> tuple[list[float], int]:
        """(held-out losses, steps taken); the last one is that of the weights that are kept."""
        sandbox, began, every = bench.sandbox, time.perf_counter(), max(1, self.recording.steps // EVALUATIONS)
        found: list[float] = []
        kept: list[Any] = []
        for number in range(steps):
            if number % every == 0:
                found.append(loss_of(sandbox.copies, self.passes))
                if self.keep_best and bench.notes and found[-1] <= min(found):
                    kept = [copy.deepcopy(module.state_dict()) for module in sandbox.modules()]
                if time.perf_counter() - began > seconds:
                    steps = number
                    break
            sandbox.iterate(bench.iterations[number % len(bench.iterations)], number < len(bench.iterations))
        for module, state in zip(sandbox.modules(), kept, strict=False):
            module.load_state_dict(state)
        return [*found, loss_of(sandbox.copies, self.passes)], steps


def early_stopping(case: Case) -> Treatment | None:
    """The weights of the best evaluation, put back in the end."""
    return _course(case, True, lambda bench: bench.notes.append("the weights of the best evaluation put back"))


def weight_decay(case: Case) -> Treatment | None:
    """Weight decay, of a usual strength, from the start."""
    return _course(case, False, lambda bench: bench.notes.append(_decaying(bench.sandbox)))


def _decaying(sandbox: Sandbox) -> str:
    kinds = {type(optimizer).__name__: optimizer for optimizer in sandbox.optimizers}
    decay = DECOUPLED if "AdamW" in kinds else DECAY
    sandbox.pinned["weight_decay"] = decay
    for group in (group for optimizer in sandbox.optimizers for group in optimizer.param_groups):
        group["weight_decay"] = decay
    return f"weight_decay={decay:g}"


def _course(case: Case, keep_best: bool, apply: Any) -> Treatment | None:
    passes = _passes(case)
    if not passes or case.recording.steps < EVALUATIONS:
        return None
    course = _Course(case.recording, passes, keep_best)
    quantity = "held-out loss in the end, above the best without it"
    return Treatment(apply, measure=Measure(quantity, course.above_best, RISE, "%"), steps=0)


# --- preprocessing ---------------------------------------------------------------------------------------------------


def same_preprocessing(case: Case) -> Treatment | None:
    """The evaluation's inputs brought to the mean and standard deviation of the training's, column by column."""
    passes, first = _passes(case), case.step.iterations[0].backwards[0].value
    if not passes:
        return None
    trained = _scales(backward for iteration in case.step.iterations for backward in iteration.backwards)
    given = _scales(passes)

    def moved(backward: Backward) -> Backward:
        entries = [_as_trained(entry, given, trained) for entry in backward.entries]
        return replace(backward, entries=entries)

    def held(bench: Bench) -> float:
        return loss_of(bench.sandbox.copies, map(moved, passes) if bench.notes else passes)

    def apply(bench: Bench) -> None:
        bench.notes.append("the captured evaluation inputs brought to the scale of the training's")

    own = [iteration.backwards[0] for iteration in case.step.iterations[:EVALUATIONS]]
    copies = as_trained(case.step).copies
    limit = max(NEAR * loss_of(copies, own), KEPT * first)
    return Treatment(apply, as_trained, control=as_trained, measure=Measure("held-out loss", held, limit), steps=0)


def finite_inputs(case: Case) -> Treatment | None:
    """The evaluation's inputs with 0 in place of what is not finite."""
    passes = _passes(case)
    if not passes:
        return None

    def filled(backward: Backward) -> Backward:
        entries = [entry if entry.module is None else with_constants(entry, _filled) for entry in backward.entries]
        return replace(backward, entries=entries)

    def broken(bench: Bench) -> float:
        given = [filled(backward) if bench.notes else backward for backward in passes]
        losses = [loss_of(bench.sandbox.copies, [backward]) for backward in given]
        return 100 * float(np.mean([not math.isfinite(loss) for loss in losses]))

    def apply(bench: Bench) -> None:
        bench.notes.append("0 in place of what is not finite in the captured evaluation inputs")

    measure = Measure("evaluations whose loss is NaN or Inf", broken, 0.0, "%")
    return Treatment(apply, as_trained, control=as_trained, measure=measure, steps=0)


def _filled(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0) if _is_float(tensor) else tensor


def _inputs(entry: Entry) -> Iterator[Tensor]:
    found: list[Any] = []
    if entry.module is not None:
        walk((entry.args, entry.kwargs), found.append)
    yield from (c.tensor for c in found if isinstance(c, Constant) and _is_float(c.tensor))


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and tensor.dim() > 1


def _scales(backwards: Iterable[Backward]) -> dict[Any, Columns]:
    rows: dict[Any, list[Tensor]] = {}
    for backward in backwards:
        for entry in backward.entries:
            for tensor in _inputs(entry):
                rows.setdefault(kind_of(tensor, axis_of(tensor)), []).append(rows_of(tensor, axis_of(tensor)))
    return {kind: scale_of(torch.cat(several)) for kind, several in rows.items()}


def _as_trained(entry: Entry, given: dict[Any, Columns], trained: dict[Any, Columns]) -> Entry:
    def moved(tensor: Tensor) -> Tensor:
        along = axis_of(tensor) if _is_float(tensor) else None
        kind = None if along is None else kind_of(tensor, along)
        if along is None or kind not in given or kind not in trained:
            return tensor
        shape = [1] * tensor.dim()
        shape[along] = -1
        (mean, std), (wanted_mean, wanted_std) = (
            [part.view(shape) for part in scales[kind]] for scales in (given, trained)
        )
        return ((tensor.double() - mean) / std * wanted_std + wanted_mean).to(tensor.dtype)

    return entry if entry.module is None else with_constants(entry, moved)


TREATMENTS: dict[str, Maker] = {
    "early-stopping": early_stopping,
    "weight-decay": weight_decay,
    "same-preprocessing": same_preprocessing,
    "clean-held-out-input": finite_inputs,
}
