"""Steps on one sample at a time: with a batch of one each update shows, which an average over many hides."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Iteration, Replay, TrainingStep
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.tiny_batch import batch_size, cut, refuse_opposed, sample
from netdoctor.recording import Arm, Array, Recording

NAME = "single-sample/steps"
SAMPLES = 16  # of the first captured batch: as many updates as are looked at
LEAST = 4  # of them, to tell one from the others
SAME = 1e-3  # relative: a mean over samples, in another order of summation
FAR = 10.0  # times the median gradient: an update that the others do not make up for


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "single-sample/steps": each of the first samples alone, from the same start.

    Losses are those of the single samples before a step of the script's optimizer on it, the curve "after" the same
    after it, "gradient" the norms of their gradients. Facts: `lowered` (share of samples whose step lowers their own
    loss), `far` (samples with a gradient ten times the median), `idle` (samples without any), `broken` (samples whose
    loss or gradient is not finite), `says`. No arm where the samples of a batch are not independent of one another
    (BatchNorm, losses over pairs), or one alone cannot be cut out.
    """
    began = time.perf_counter()
    moving = recording.facts.get("moving_target") or recording.facts.get("several_optimizers")
    if moving or step.lost or not step.iterations:
        return {}
    try:
        with quiet():
            refuse_opposed(step)
            singles = _singles(step)
            rows = [row for row in (_one(step, it, budget) for it in singles) if row is not None]
    except CannotReplayError:
        return {}
    except Exception:  # a model that wants a whole batch: nothing to tell of single samples
        return {}
    if len(rows) < LEAST:
        return {}
    before, after, norms = (np.asarray(column) for column in zip(*rows, strict=True))
    facts = _facts(before, after, norms)
    curves = {"after": after, "gradient": norms}
    return {NAME: Arm(NAME, before, time.perf_counter() - began, facts, {}, curves)}


def _singles(step: TrainingStep) -> list[Iteration]:
    """Iterations with one sample each. Raises CannotReplayError where the parts do not add up to the whole."""
    dimension = cut(step, step.copies()).dimension
    first = step.iterations[0]
    size = batch_size(first, dimension)
    singles = [sample(first, size, dimension, (index,)) for index in range(min(size, SAMPLES))]
    few = sample(first, size, dimension, tuple(range(len(singles))))
    copies = step.copies()
    parts = [_loss(copies, iteration) for iteration in singles]
    whole = _loss(copies, few)
    finite = [part for part in parts if math.isfinite(part)]
    sums = sum(finite), sum(finite) / max(1, len(finite))  # of a loss that adds up, or takes the mean
    near = [abs(whole - total) <= SAME * max(1e-12, abs(whole)) for total in sums]
    if len(finite) == len(parts) and not any(near):
        raise CannotReplayError("the loss of a batch is not made of those of its samples")
    return singles


def _loss(copies: Copies, iteration: Iteration) -> float:
    replay = Replay(copies)
    return sum(float(replay.loss(backward).detach()) for backward in iteration.backwards)


def _one(step: TrainingStep, iteration: Iteration, budget: Budget) -> tuple[float, float, float] | None:
    """(loss before, loss after, norm of the gradient) of one step on one sample from the start; None without time."""
    if budget.left <= 0:
        return None
    sandbox = Sandbox(step)
    before = sandbox.iterate(iteration)
    if not math.isfinite(before):
        return before, math.nan, math.nan
    gradients = [p.grad for p in sandbox.trainable() if p.grad is not None and p.grad.layout is torch.strided]
    return before, _loss(sandbox.copies, iteration), _norm(gradients)


def _norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


def _facts(before: Array, after: Array, norms: Array) -> dict[str, float | str | bool]:
    finite = np.isfinite(norms) & np.isfinite(before)
    middle = float(np.median(norms[finite])) if finite.any() else math.nan
    far = np.flatnonzero(finite & (norms > FAR * middle)) if middle > 0 else np.empty(0, dtype=int)
    idle, broken = np.flatnonzero(finite & (norms == 0)), np.flatnonzero(~finite)
    moved = finite & (norms > 0)
    lowered = float((after[moved] < before[moved]).mean()) if moved.any() else 0.0
    says = f"{100 * lowered:.0f} % of {int(moved.sum())} steps on a single sample lower its loss"
    hard = f"pull more than {FAR:g} times as hard as most"
    for found, what in ((far, hard), (idle, "give no gradient"), (broken, "give NaN or Inf")):
        if found.size:
            says += f"; samples {', '.join(map(str, found[:8]))} {what}"
    return {
        "lowered": lowered,
        "far": ",".join(map(str, far)),
        "idle": ",".join(map(str, idle)),
        "broken": ",".join(map(str, broken)),
        "verdict": "failed" if broken.size else "passed",
        "says": says,
    }
