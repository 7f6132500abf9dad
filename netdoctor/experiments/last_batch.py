"""What does evaluation get where a BatchNorm's running statistics are those of the last batch: of any of the captured ones?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.last_batch import hasty
from netdoctor.capture.step import Copies, Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Entry
from netdoctor.checks.structure.running_statistics import DRAWS
from netdoctor.errors import why_it_failed
from netdoctor.experiments.final import switched, trains, ungraded, without_graph
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.tiny_batch import batch_size, sample
from netdoctor.recording import Arm, Recording

MOST = 12  # draws: enough for a mean
FEWEST = 4  # draws, and batches: fewer tell nothing of what is to be expected
OTHERS = 3  # batches that each draw is tried on
State = list[tuple[Tensor, Tensor]]  # running mean and variance of each norm


@dataclass(frozen=True, slots=True)
class Draws:
    """What evaluation gets from the statistics of single batches.

    `losses`: per batch, of the batches after it, in evaluation mode with the statistics that this one left; `averaged`: the mean
    loss with the average over all of them; `apart`: how far the statistics were from that average, with the median distance of what
    one batch leaves as 1.
    """

    losses: list[float]
    averaged: float
    apart: float


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "final/draws"; none without a BatchNorm that trains with a momentum of `HASTY` or more.

    On a copy of the trained model, with batches of as many samples as the last one before an evaluation held. Its losses and the
    facts `averaged` and `apart` are those of `Draws`; `momentum` and `module`: the largest, and the path of the first norm with
    it; `samples` of a batch.
    """
    norms = hasty_norms(step)
    if not norms or step.lost or len(step.iterations) < FEWEST or recording.facts.get("several_optimizers"):
        return {}
    began, size = time.perf_counter(), samples(recording, step)
    try:
        with quiet():
            found = draw(Copies(step.modules, step.leaves), step, size, budget)
    except Exception as error:  # the model was taken apart after the training, or cannot be copied
        return {DRAWS: Arm(DRAWS, np.empty(0), failure=why_it_failed(error))}
    if len(found.losses) < FEWEST:
        return {DRAWS: Arm(DRAWS, np.empty(0), failure="no time was left for it")}
    path = max(norms, key=lambda name: norms[name].momentum or 0.0)
    facts: dict[str, float | str | bool] = {"averaged": found.averaged, "apart": found.apart, "samples": float(size)}
    facts |= {"module": path, "momentum": float(norms[path].momentum or 0.0)}
    mean = np.mean(found.losses)
    facts["says"] = f"mean loss {mean:.4g} with the statistics of one batch, {found.averaged:.4g} with those of all"
    return {DRAWS: Arm(DRAWS, np.asarray(found.losses), time.perf_counter() - began, facts)}


def samples(recording: Recording, step: TrainingStep) -> int:
    """Of the batch whose statistics an evaluation is left with; of a captured one where it is not known to be smaller."""
    whole, last = batch_size(step.iterations[0], 0), int(recording.facts.get("last_batch", 0))
    return last if 0 < last < whole else whole


def hasty_norms(step: TrainingStep) -> dict[str, _BatchNorm]:
    """The hasty BatchNorms, by path, that were in training mode in the first captured step."""
    training: set[int] = set()
    for backward in step.iterations[0].backwards if step.iterations else ():
        for entry in backward.entries:
            pairs = () if entry.module is None else zip(entry.module.modules(), entry.modes, strict=False)
            training |= {id(child) for child, mode in pairs if mode}
    named = ((path, child) for top in step.modules for path, child in top.named_modules())
    return {
        path: child for path, child in named if id(child) in training and isinstance(child, _BatchNorm) and hasty(child)
    }


@torch.no_grad()
def draw(copies: Copies, step: TrainingStep, size: int, budget: Budget) -> Draws:
    """Pass the captured batches, each cut to `size` samples, in their order and the modes that they were captured in.

    Of the copies' BatchNorms only the hasty ones move; what they hold afterwards is another draw.
    """
    norms, iterations = _copied(copies, step), step.iterations
    chosen = list(iterations[:: max(1, len(iterations) // MOST)][:MOST])
    found = _state(norms)
    average = averaged(copies, norms, iterations)
    level = float(np.mean([_loss(copies, one) for one in chosen]))
    _put(norms, found)
    losses: list[float] = []
    apart: list[float] = []
    for number, iteration in enumerate(chosen):
        if budget.left <= 0:
            break
        passed(copies, _shortened(iteration, size))
        apart.append(_distance(_state(norms), average))
        others = [chosen[(number + ahead) % len(chosen)] for ahead in range(1, OTHERS + 1)]
        losses.append(float(np.mean([_loss(copies, one) for one in others])))
    usual = float(np.median(apart)) if apart else 0.0
    return Draws(losses, level, _distance(found, average) / usual if usual > 0 else 0.0)


def _copied(copies: Copies, step: TrainingStep) -> list[_BatchNorm]:
    """The copies of the hasty norms; all others stand still from now on."""
    moving = {id(norm) for norm in hasty_norms(step).values()}
    for norm in (child for top in step.modules for child in top.modules() if trains(child) and id(child) not in moving):
        copies.of(norm).momentum = 0.0
    return [copies.of(norm) for norm in hasty_norms(step).values()]


def averaged(copies: Copies, norms: Sequence[_BatchNorm], iterations: Sequence[Iteration]) -> State:
    """Give these norms the statistics of all batches together, as `torch.optim.swa_utils.update_bn` does; returns them."""
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
    for iteration in iterations:
        passed(copies, iteration)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return _state(norms)


def _shortened(iteration: Iteration, size: int) -> Iteration:
    """The iteration with the first `size` samples of its batch; as it is where that has no more of them."""
    whole = batch_size(iteration, 0)
    return sample(iteration, whole, 0, tuple(range(size))) if size < whole else iteration


@torch.no_grad()
def passed(copies: Copies, iteration: Iteration) -> None:
    """One forward pass over the batches of an iteration, in the modes that they were captured in."""
    replay = Replay(copies)
    made: dict[
        int, Entry
    ] = {}  # losses that share entries go on sharing them, and the replay tells entries apart by identity
    for backward in iteration.backwards:
        refuse_overwritten(backward)
        made |= {id(entry): ungraded(entry) for entry in backward.entries if id(entry) not in made}
        replay.loss(replace(backward, entries=[made[id(entry)] for entry in backward.entries]))


def _loss(copies: Copies, iteration: Iteration) -> float:
    """Of one batch, in evaluation mode."""
    return float(Replay(copies).loss(without_graph(switched(iteration.backwards[0], normed=False))))


def _state(norms: Sequence[_BatchNorm]) -> State:
    pairs = ((norm.running_mean, norm.running_var) for norm in norms)
    return [(mean.clone(), variance.clone()) for mean, variance in pairs if mean is not None and variance is not None]


def _put(norms: Sequence[_BatchNorm], state: State) -> None:
    for norm, (mean, variance) in zip(norms, state, strict=True):
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _distance(one: State, average: State) -> float:
    """Root mean square over channels of how far means (in standard deviations) and variances (relative) are apart."""
    parts = [
        torch.cat([(a - m).square() / (v + 1e-12), (b / (v + 1e-12) - 1).square()])
        for (a, b), (m, v) in zip(one, average, strict=True)
    ]
    return float(torch.cat([part.double() for part in parts]).mean().sqrt())
