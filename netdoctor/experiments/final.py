"""What does the model, as the training left it, do with the captured batches: in evaluation mode, and by batch statistics?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.step import Copies, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Entry
from netdoctor.errors import why_it_failed
from netdoctor.experiments.loss_terms import BINARY_LOSSES, CLASSES, REGRESSION, Term, watched_terms
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.score import Fit, fits
from netdoctor.recording import Arm, Recording

BATCHES = 12  # of the captured ones, from all over: enough for a mean
MAX_CLASSES = 1024
USUAL = 0.02, 0.5  # momentum of BatchNorm: PyTorch's 0.1, TensorFlow's 0.01 is rare
KEPT = "final/kept statistics"
DEFAULT = (0.0, 1.0)  # running mean and variance of a new BatchNorm: nothing was loaded


def outcome(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "final/evaluation" and, with BatchNorm layers, "final/batch statistics": losses per captured batch.

    Dropout is off in both; in the second one BatchNorm normalises by the batch, as in training. Curves of the first,
    where one class per sample is predicted: "targets", "predictions" and "right", counts per class; its fact "left": what
    the terms that compare with data leave of the loss of the best constant prediction (the worst of them). Facts of the
    second: "frozen_drift", the largest median (over channels) move of a frozen BatchNorm's running mean in standard
    deviations, and "frozen_module" its path, where it was loaded with statistics of its own; "usual_momentum".

    Where BatchNorms were frozen after the captured steps, and their statistics moved on: "final/kept statistics", the
    first of these with the statistics of the moment in which they were frozen.
    """
    modes = {"final/evaluation": False}
    if step.norms and all(kept.step >= step.begins + len(step.iterations) for _, kept in step.norms):
        modes[KEPT] = False
    if any(trains(child) for module in step.modules for child in module.modules()):
        modes["final/batch statistics"] = True
    arms = {}
    for name, normed in modes.items():
        arms[name] = _arm(name, step, normed, budget)
        if arms[name].failure:
            break
    return arms


def _known(terms: list[Term]) -> list[Fit]:
    """The fits of all terms that compare with data, if each can be set beside a constant prediction."""
    found = fits(terms, 1)
    compared = [term for term in terms if term.kind in (CLASSES, REGRESSION)]
    return found if len(found) == len(compared) and all(fit.constant > 0 for fit in found) else []


def trains(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that keeps running statistics."""
    return isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None


def _usual(module: nn.Module) -> bool:
    low, high = USUAL
    return not isinstance(module, _BatchNorm) or module.momentum is None or low <= module.momentum <= high


def _arm(name: str, step: TrainingStep, normed: bool, budget: Budget) -> Arm:
    losses: list[float] = []
    counts: dict[str, Tensor] = {}
    left: list[float] = []
    began = time.perf_counter()
    try:
        with quiet():
            for backward in batches(step):
                if budget.left <= 0:
                    break
                refuse_overwritten(backward)
                copies = Copies(step.modules, step.leaves)  # as they are now, and afresh: running statistics move
                if name == KEPT:
                    _put_back(step, copies)
                value, terms = watched_terms(copies, switched(backward, normed))
                losses.append(value)
                _count(terms, counts)
                left += [max(fit.measure / fit.constant for fit in found)] if (found := _known(terms)) else []
    except Exception as error:  # the model was taken apart after the training, or cannot be copied
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    if not losses:
        return Arm(name, np.empty(0), failure="no time was left for it")
    facts: dict[str, float | str | bool] = {"says": f"mean loss {np.mean(losses):.4g} on {len(losses)} batches"}
    if left:
        facts["left"] = float(np.mean(left))
    if normed:
        facts.update(_frozen_drift(step))
        facts["usual_momentum"] = all(map(_usual, (child for module in step.modules for child in module.modules())))
    curves = {key: value.double().cpu().numpy() for key, value in counts.items()}
    return Arm(name, np.asarray(losses), time.perf_counter() - began, facts, {}, curves)


def batches(step: TrainingStep) -> Iterator[Backward]:
    """Some of the captured batches, from all over."""
    if step.lost or not step.iterations:
        return
    stride = max(1, len(step.iterations) // BATCHES)
    for iteration in step.iterations[::stride][:BATCHES]:
        yield iteration.backwards[0]


def switched(backward: Backward, normed: bool) -> Backward:
    """The backward with all modules in evaluation mode; `normed`: but the BatchNorms that were in training mode."""

    def quieted(entry: Entry) -> Entry:
        if entry.module is None:
            return entry
        modes = (
            mode and normed and isinstance(child, _BatchNorm)
            for child, mode in zip(entry.module.modules(), entry.modes, strict=False)
        )
        return replace(entry, modes=tuple(modes))

    return replace(backward, entries=[quieted(entry) for entry in backward.entries])


def ungraded(entry: Entry) -> Entry:
    """The same call without a graph."""
    return replace(entry, context=entry.context and replace(entry.context, grad=False))


def without_graph(backward: Backward) -> Backward:
    """The same calls without a graph."""
    return replace(backward, entries=[ungraded(entry) for entry in backward.entries])


@torch.no_grad()
def _count(terms: list[Term], counts: dict[str, Tensor]) -> None:
    """Add up targets, predictions and right predictions per class of the one term that predicts classes."""
    found = [term for term in terms if term.kind == CLASSES]
    if len(found) != 1 or found[0].prediction is None or found[0].target is None:
        return
    pair = classes_of(found[0], found[0].prediction, found[0].target)
    if pair is None:
        return
    predicted, target, classes = pair
    for key, which in (("targets", target), ("predictions", predicted), ("right", target[predicted == target])):
        new = torch.bincount(which, minlength=classes)[:classes]
        counts[key] = counts[key] + new if key in counts else new


def classes_of(term: Term, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """(predicted classes, target classes, number of classes), each flat."""
    if term.name in BINARY_LOSSES:
        limit = 0.0 if term.name.endswith("logits") else 0.5
        single = prediction.dim() < 2 or prediction.shape[1:].numel() == 1
        return ((prediction.reshape(-1) > limit).long(), target.reshape(-1).long(), 2) if single else None
    classes = prediction.shape[1] if prediction.dim() > 1 else 0
    if target.is_floating_point() or not 1 < classes <= MAX_CLASSES:
        return None
    kept = target.reshape(-1)
    valid = (kept >= 0) & (kept < classes)
    return prediction.argmax(1).reshape(-1)[valid], kept[valid], classes


def _put_back(step: TrainingStep, copies: Copies) -> None:
    """The statistics that norms had when they were frozen."""
    for norm, kept in step.norms:
        copied = copies.of(norm)
        if isinstance(copied, _BatchNorm) and copied.running_mean is not None and copied.running_var is not None:
            copied.running_mean.copy_(kept.mean)
            copied.running_var.copy_(kept.variance)


def _frozen_drift(step: TrainingStep) -> dict[str, float | str | bool]:
    """How far running means of frozen BatchNorms in training mode moved since the start; nothing where there are none."""
    worst, where = 0.0, ""
    for path, norm, mean, variance in frozen_norms(step):
        moved = drift_of(norm, mean, variance)
        if moved > worst:
            worst, where = moved, path
    return {"frozen_drift": worst, "frozen_module": where}


def frozen_norms(step: TrainingStep) -> Iterator[tuple[str, _BatchNorm, Tensor, Tensor]]:
    """(path, BatchNorm, mean, variance) of the frozen ones in training mode that began with statistics of their own.

    Those whose weights the script moves itself, as averages of another model's, are not frozen."""
    for top in step.modules:
        for path, norm in top.named_modules():
            if not (trains(norm) and isinstance(norm, _BatchNorm) and norm.weight is not None and norm.training):
                continue
            starts = [step.starts.get(id(buffer)) for buffer in (norm.running_mean, norm.running_var)]
            if norm.weight.requires_grad or starts[0] is None or starts[1] is None:
                continue
            begun = step.starts.get(id(norm.weight))
            if begun is not None and begun[1].requires_grad:
                continue  # frozen on the way: the check frozen-parameter-moves knows its statistics of that moment
            if begun is not None and not torch.equal(begun[1].detach(), norm.weight.detach()):
                continue  # the script moves its weights itself: an average of another model's
            mean, variance = starts[0][1], starts[1][1]
            if not (bool((mean == DEFAULT[0]).all()) and bool((variance == DEFAULT[1]).all())):
                yield path, norm, mean, variance


def drift_of(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> float:
    """How far the running mean lies from another one, in standard deviations: the median over channels."""
    assert norm.running_mean is not None
    return float(((norm.running_mean - mean).abs() / (variance + norm.eps).sqrt()).median())
