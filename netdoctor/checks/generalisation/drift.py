"""Training inputs that change from step to step, away from what the model is evaluated on: preprocessing that piles up."""

from __future__ import annotations

import math

import numpy as np

from netdoctor.data import Array, Evaluation, TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Series, SourceLine

STEPS = 12  # measured ones: a trend over fewer may be chance
ENDS = 3  # measured steps that show how it began, and how it ended
# Between the scale of the last steps and that of the evaluation, times what lay between the first steps and it. An augmentation
# of copies stays as it began, whatever its size: 1.5 is far outside of what the batches of one distribution differ by.
APART = 1.5
STEADY = 0.6  # Kendall's tau against time: the first epoch, in which most steps are measured, may show no change yet
CODE = "img = img + noise  # not img += noise, which changes the stored data: it grows from epoch to epoch"
HARM = frozenset({"loss-not-decreasing", "loss-diverging", "unstable-loss", "underfitting"})


def drifting(trained: TensorFacts, given: TensorFacts) -> Finding | None:
    """The finding that the inputs of the training move away from the evaluation's steadily, or None.

    Deviations and means (in deviations of the evaluation) are looked at per measured step, over all columns.
    """
    if trained.scales is None or len(trained.scales) < STEPS or not given.std > 0:
        return None
    scales = trained.scales[np.isfinite(trained.scales).all(axis=1)]
    spread, shift = np.abs(np.log(np.maximum(scales[:, 1], 1e-30) / given.std)), np.abs(scales[:, 0] - given.mean)
    for distance in (spread, np.log1p(shift / given.std)):
        if len(distance) < STEPS or tau(distance) < STEADY:
            continue
        began, ended = float(np.median(distance[:ENDS])), float(np.median(distance[-ENDS:]))
        if ended - began >= math.log(APART):
            return _finding(trained, given, scales, ended - began)
    return None


def was_once(trained: TensorFacts, given: TensorFacts, apart: float) -> bool:
    """Whether the training had several kinds of inputs, one after the other, and the evaluation's are like one of them."""
    if trained.scales is None or not given.std > 0:
        return False
    scales = trained.scales[np.isfinite(trained.scales).all(axis=1) & (trained.scales[:, 1] > 0)]
    if not len(scales):
        return False
    means, spreads = scales.T
    several = spreads.max() >= apart * spreads.min() or np.ptp(means) >= apart * spreads.max()
    alike = (np.abs(np.log(spreads / given.std)) < math.log(APART)) & (np.abs(means - given.mean) < given.std)
    return bool(several and alike.sum() >= ENDS)


def shift(trained: TensorFacts, given: TensorFacts, share: float) -> tuple[float, float]:
    """(factor between the deviations, distance of the means in deviations), each reached by this share of the columns.

    Of a single column (share 0) the deviation is that of the training; else the larger one, which asks for more.
    """
    one, other = trained.columns, given.columns
    kept = (one.std > 0) & (other.std > 0)
    if not kept.any():
        return 1.0, 0.0
    ratio = np.abs(np.log(other.std[kept] / one.std[kept]))
    scale = np.maximum(one.std[kept], other.std[kept]) if share else one.std[kept]
    moved = np.abs(other.mean[kept] - one.mean[kept]) / scale
    return float(np.exp(np.quantile(ratio, 1 - share))), float(np.quantile(moved, 1 - share))


def far_worse(evaluation: Evaluation, loss: Series | None, times: float) -> bool:
    """Whether an evaluation's loss ends at so many times that of the training, over its last 16 steps."""
    trained = np.empty(0) if loss is None else loss.values[-16:]
    known = evaluation.losses.size > 0 and trained.size > 0 and bool(np.median(trained) > 0)
    return known and bool(evaluation.losses[-1] >= times * np.median(trained))


def tau(values: Array) -> float:
    """Kendall's rank correlation of values with their order (tau-a): 1 where each is above all before it."""
    signs = np.sign(values[None, :] - values[:, None])
    count = len(values)
    return float(np.triu(signs, 1).sum() / (count * (count - 1) / 2))


def _finding(trained: TensorFacts, given: TensorFacts, scales: Array, moved: float) -> Finding:
    first, last = np.median(scales[:ENDS], axis=0), np.median(scales[-ENDS:], axis=0)
    steps = f"steps {trained.steps[0]} and {trained.steps[-1]}"
    return Finding(
        "train-eval-shift",
        "the training's inputs change from step to step, away from those of the evaluation",
        Severity.WARNING,
        f"Training at {steps}: mean {first[0]:.3g} and {last[0]:.3g}, standard deviation {first[1]:.3g} and {last[1]:.3g}; "
        f"evaluation: mean {given.mean:.3g}, standard deviation {given.std:.3g}. An operation in place on the stored data "
        "piles up like this.",
        Location.at(SourceLine(trained.file, trained.line, trained.text) if trained.file else None),
        (Evidence("distance from the evaluation's scale, factor gained", math.exp(moved), "≥", APART),),
        (Fix("augment-a-copy", "Preprocess and augment copies, not the stored data.", CODE, Reach.RUN),),
        first_step=int(trained.steps[-1]),
        share=1.0,
    )
