"""What the loss says about a suspicion against the data: is training hurt, slow, or fine in spite of it?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from netdoctor.checks.signal.outcome import hurt, words
from netdoctor.data import Array, TensorFacts
from netdoctor.recording import Arm, Recording
from netdoctor.trend import NO_BETTER, SURE_STEPS, Trend, judge

NO_WORSE = 0.95  # of a constant predictor's loss: nothing was learned from the input
SLOW = 0.5  # of a constant predictor's loss (of the start, where that is unknown): learned, but little


# Operations in which values that are merely large overflow; a NaN that is born elsewhere has another cause.
_GROWING_NAMES = """
exp expm1 exp2 sinh cosh linear addmm matmul mm bmm conv1d conv2d conv3d add sub mul pow square sum mean
    mse_loss cross_entropy relu
    lstm gru batch_norm layer_norm huber_loss smooth_l1_loss l1_loss
"""
_GROWING = frozenset(_GROWING_NAMES.split())


class State(Enum):
    """How the training fares."""

    HURT = "hurt"
    SLOW = "slow"
    WORKS = "works"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Harm:
    """The state, the trend that it was read from, and the loss of a constant predictor (NaN when unknown)."""

    state: State
    trend: Trend
    constant: float

    @property
    def words(self) -> str:
        """What the loss does, as a sentence or two."""
        if self.state is State.HURT and not hurt(self.trend) and math.isfinite(self.constant):
            return f"The loss ends at {self.trend.end:.4g}; a constant prediction gets {self.constant:.4g}."
        return words(self.trend)


def harm(recording: Recording) -> Harm:
    """The state of the training. Learning is what goes below the loss of the best constant prediction."""
    trend, constant = judge(recording), constant_loss(recording)
    moving = recording.facts.get("moving_target") or recording.facts.get("several_optimizers")
    if moving and trend.kind != "non-finite":
        return Harm(State.UNKNOWN, trend, constant)
    return Harm(_state(trend, constant), trend, constant)


def _state(trend: Trend, constant: float) -> State:
    if hurt(trend) or trend.reason == NO_BETTER:
        return State.HURT
    if trend.kind == "unknown":
        no_better = trend.steps >= SURE_STEPS and trend.end > NO_WORSE * constant  # NaN compares false
        return State.HURT if no_better else State.UNKNOWN
    if math.isfinite(constant) and constant > 0:
        left = trend.end / constant
        return State.HURT if left > NO_WORSE else State.SLOW if left > SLOW else State.WORKS
    return State.SLOW if trend.kind == "falls" and trend.drop < SLOW else State.WORKS


def left(recording: Recording) -> float:
    """What a training leaves of the loss of the best constant prediction: at its end, and of the trained model in evaluation
    mode; the larger one where both are known, infinite where neither is."""
    arm, constant, end = recording.arms.get("final/evaluation"), constant_loss(recording), judge(recording).end
    measured = math.nan if arm is None or arm.failure else float(arm.facts.get("left", math.nan))
    known = [share for share in (end / constant if constant > 0 else math.nan, measured) if not math.isnan(share)]
    return max(known, default=math.inf)


def constant_loss(recording: Recording) -> float:
    """The loss of the best constant prediction: ln C for C classes, and for regression from the targets; NaN: unknown.

    Only where the loss is the plain mean of one known loss function: a sum of terms has another constant.
    """
    if not _plain(recording):
        return math.nan
    family, classes = str(recording.facts.get("loss_family")), float(recording.facts.get("classes", 0))
    target = recording.targets[0] if len(recording.targets) == 1 else None
    if family in {"mse", "l1", "huber"}:
        return math.nan if target is None else regression_constant(target, family)
    uniform = math.log(classes) if classes > 1 else math.log(2) if family == "bce" else math.nan
    if _weighted(recording):  # classes that count more than others have another best constant
        return math.nan if family == "bce" else uniform
    if target is not None and target.classes is not None:
        return min(uniform, entropy(target.classes.sum(axis=0)))
    return uniform


def regression_constant(target: TensorFacts, family: str) -> float:
    """The variance of a target for "mse", for "l1" its mean absolute deviation (of a normal one), "huber" between."""
    std = target.columns.std
    square, absolute = float(np.mean(std**2)), float(np.mean(std)) * math.sqrt(2 / math.pi)
    return square if family == "mse" else absolute if family == "l1" else min(square / 2, absolute)


def entropy(counts: Array) -> float:
    """Entropy of class counts, in nats."""
    return float(entropies(counts[None])[0])


def entropies(counts: Array) -> Array:
    """Entropy of each row of class counts, in nats."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1))


def _weighted(recording: Recording) -> bool:
    """Whether the loss function is given weights of classes or samples beside prediction and target."""
    graph = recording.graph
    last = None if graph is None or graph.loss is None else graph.producer(graph.loss)
    return last is not None and len(last.inputs) > 2


def _plain(recording: Recording) -> bool:
    graph = recording.graph
    last = None if graph is None or graph.loss is None else graph.producer(graph.loss)
    return last is not None and (last.attributes.get("reduction") == "mean" or last.name == "mean")


def of_scale(recording: Recording) -> bool:
    """Whether a NaN or Inf, if there is one, may come of values that are too large: none came with the data or weights."""
    origin = recording.origin
    if origin is None:
        return True
    return origin.phase not in {"input", "parameter"} and (not origin.operation or origin.operation in _GROWING)


def level(arm: Arm) -> float:
    """The median of the last fifth of an arm's losses; infinite when it ended as NaN or Inf."""
    tail = arm.losses[-max(2, len(arm.losses) // 5) :]
    return float(np.median(tail)) if tail.size and np.isfinite(tail).all() else math.inf
