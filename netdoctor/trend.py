"""Is the loss falling? One judgement that every check with an outcome gate shares, robust against minibatch noise.

`judge` reads a whole recording, `judge_series` a plain sequence of losses. Kinds of a trend:

- ``falls``: a significant fall that is still going on, or that ended well below where it started.
- ``converged``: no fall any more, but at a level far below the start, or at the floor from the first step on.
- ``flat``: enough steps to see a fall, and there is none (or only one down to the level of a constant predictor).
- ``rises``: a significant rise, or a fall of which more than half was lost again.
- ``non-finite``: the loss ended as NaN or Inf, or was so for at least half of the steps.
- ``unknown``: too short, too noisy, still above what a constant prediction gives, or a loss that is not meant to fall
  (GAN, RL, moving targets); `reason` says which.

`Trend.learning` and `Trend.failing` are the two gates; both are False when the trend is unknown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from netdoctor.graph import Operation
from netdoctor.recording import Array, Recording, Series

MIN_STEPS = 8  # Mann-Kendall's normal approximation holds from 8 values on (Mann 1945; Gilbert 1987, section 16.4)
SURE_STEPS = 30  # under this a small but significant fall may be a healthy slow start, so "flat" is not claimed
POINTS = 128  # longer series become 128 block medians: all pairs then cost well under 1 ms
MAYBE_Z = -1.64  # one-sided 5 %: in a short run enough not to call it flat
FALL_Z = -2.33  # one-sided 1 %: a stuck training passes for a falling one in 1 of 100 runs
RISE_Z = 3.0  # one-sided 0.1 %: stricter, as a rise is an accusation by itself
MIN_DROP = 0.01  # a fall under 1 % of the start is no training (trainproof: 0.1 %, AUTOTRAINER: 5 %)
STILL_FALLING = 0.005  # half of that over the second half: it has not settled at the chance level
MIN_RISE = 0.2  # 20 % above the start: noise of a drifting optimum stays under it
CONVERGED = 0.5  # lost half of the start without falling now: it fell before the first block ended
LIKE_CHANCE = 1.5  # a first loss up to this much above ln C is that of an untrained classifier, and no sum of terms
AT_CHANCE = 0.98  # within 2 % of what a constant predictor gets
AT_FLOOR = 0.1  # under a tenth of the chance level there is little left to fall (a pretrained model)
LEARNED = 0.7  # of the loss of the best constant prediction: what a model leaves that learned from its input
MEMORY = 0.6  # most autocorrelation that is corrected for: what a smooth curve leaves over is shape, not memory
HUGE = 1e100  # losses beyond are as good as this, and their squares are finite
BLIND = 0.3  # where even a fall by 30 % cannot be excluded at 95 %, noise hides the answer
NO_BETTER = "it falls, but is no better yet than a constant prediction"


@dataclass(frozen=True, slots=True)
class Trend:
    """How a loss developed. `drop` is the robust fraction of the start that was lost; negative when it rose.

    `start` and `end` are levels (medians of blocks), `noise` the standard deviation from step to step around the trend,
    all in units of the loss. `z` is Mann-Kendall's statistic (negative: falling), `first_nonfinite` an optimizer step.
    """

    kind: str
    drop: float = math.nan
    noise: float = math.nan
    first_nonfinite: int | None = None
    reason: str = ""
    start: float = math.nan
    end: float = math.nan
    steps: int = 0
    z: float = 0.0

    @property
    def learning(self) -> bool:
        """True when the training demonstrably works: symptoms measured beside it are harmless."""
        return self.kind in {"falls", "converged"}

    @property
    def failing(self) -> bool:
        """True when the training demonstrably does not work."""
        return self.kind in {"flat", "rises", "non-finite"}


@dataclass(frozen=True, slots=True)
class _Chance:
    """The loss of a constant predictor, and whether it is exact rather than estimated from one batch."""

    loss: float
    sure: bool


def judge(recording: Recording) -> Trend:
    """The trend of a recording's loss; of several losses, what they say together.

    Learning begins below the loss of a constant predictor: ln C for C classes, ln 2 for binary cross-entropy, as far as
    the loss is that mean and nothing else. For squared errors the variance of the first batch's targets, or what the
    overfit experiment measured on its batch, is an estimate of it.
    """
    if not recording.losses:
        return Trend("unknown", reason="no loss was seen")
    trend = _together([_of(series, recording) for series in _latest(recording)])
    if recording.facts.get("moving_target") and trend.kind != "non-finite":
        return replace(trend, kind="unknown", reason="a model makes the target: such a loss need not fall")
    if recording.facts.get("several_optimizers") and trend.kind in {"flat", "rises"}:
        return replace(trend, kind="unknown", reason="several optimizers may work against each other")
    if trend.kind == "falls" and (left := _left(recording)) <= LEARNED:
        return replace(
            trend, drop=max(trend.drop, 1 - left)
        )  # the rest of the loss is nothing that training could take
    if trend.reason == NO_BETTER and _cannot_fit(recording):
        return replace(trend, kind="flat", reason="")  # the experiment answers what the estimate left open
    return trend


def phase(recording: Recording) -> int:
    """The step at which the last phase of a training began: other parameters are trained from there on, by an optimizer that
    was new, and none of the earlier ones steps any more. 0 for a training of one phase."""
    stepped = sorted((o for o in recording.optimizers if o.span), key=lambda o: o.span[0])
    begins = 0
    for number, new in enumerate(stepped):
        before = [o for o in stepped[:number] if o.span[0] < new.span[0]]
        others = before and all(o.span[1] < new.span[0] for o in before)
        if others and set(new.parameters) != set(before[-1].parameters):
            begins = new.span[0]
    return begins


def _latest(recording: Recording) -> list[Series]:
    """The losses of the last phase: a new head begins anew. All of them where that phase was too short to be judged."""
    begins = phase(recording)
    cut = [Series(s.steps[s.steps >= begins], s.values[s.steps >= begins]) for s in recording.losses.values()]
    kept = [series for series in cut if series.values.size >= MIN_STEPS]
    return kept if begins and kept else list(recording.losses.values())


def _left(recording: Recording) -> float:
    """What the trained model leaves of the loss of the best constant prediction; infinite where no experiment measured that."""
    arm = recording.arms.get("final/evaluation")
    return math.inf if arm is None or arm.failure else float(arm.facts.get("left", math.inf))


def _cannot_fit(recording: Recording) -> bool:
    """Whether the overfit experiment ran with the script's own optimizer and with others, and not one could fit its samples."""
    names = ("overfit/own", "overfit/adam")
    arms = [arm for name, arm in recording.arms.items() if name.startswith(names) and not arm.failure]
    return len(arms) > 1 and all(arm.facts.get("reached") is False and arm.facts.get("kind") != "other" for arm in arms)


def judge_series(
    values: Sequence[float] | Array, lower_bound: float = 0.0, chance: float | None = None, sure: bool = True
) -> Trend:
    """The trend of one loss, one value per step.

    `lower_bound` is the lowest value that the loss can take (-inf when unknown), `chance` the loss of a constant
    predictor, and `sure` whether that is exact: a fall that ends there is then "flat", else "unknown".

    Formulas. Noise: 1.4826 median|x[t] - (x[t-1] + x[t+1])/2| / sqrt(1.5), the robust form of the pseudo-residuals of
    Gasser, Sroka and Jennen-Steinmetz (1986), blind to a smooth trend. Significance: Mann-Kendall's S (Mann 1945,
    Kendall 1975), with ties, on at most 128 block medians, its variance widened by (1 + r)/(1 - r) for lag-1
    autocorrelation r of the detrended values (Bayley and Hammersley 1946; Yue and Wang 2004). What cannot be excluded:
    the 95 % interval of the Theil-Sen slope (Sen 1968). `drop`: (start - end) / (start - bound) from medians of the
    first and last fifth; the start is not taken higher than the very first loss (plus two noises), so that recovering
    from a jump right after the first step does not pass for learning.
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    return _judged(x.tobytes(), float(lower_bound), chance, sure)


@functools.lru_cache(maxsize=64)  # some thirty checks ask about the same loss
def _judged(values: bytes, lower_bound: float, chance: float | None, sure: bool) -> Trend:
    x = np.frombuffer(values, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(x))
    first = int(broken[0]) if broken.size else None
    if broken.size and (not math.isfinite(x[-1]) or 2 * broken.size >= x.size):
        before = x[: broken[0]]
        ends = (float(before[0]), float(before[-1])) if before.size else (math.nan, math.nan)
        return Trend("non-finite", first_nonfinite=first, start=ends[0], end=ends[1], steps=x.size)
    x = np.clip(x[np.isfinite(x)], -HUGE, HUGE)
    if x.size < MIN_STEPS:
        return Trend("unknown", first_nonfinite=first, reason=f"{x.size} losses, {MIN_STEPS} are needed", steps=x.size)
    facts = _measure(x, lower_bound)
    kind, reason = _decide(x, facts, lower_bound, None if chance is None else _Chance(chance, sure))
    return replace(facts, kind=kind, reason=reason, first_nonfinite=first)


def significance(values: Sequence[float] | Array) -> float:
    """Mann-Kendall's Z of a finite series: positive when it rises, negative when it falls, about normal without a trend."""
    return _mann_kendall(_thin(np.asarray(values, dtype=np.float64)))


def _of(series: Series, recording: Recording) -> Trend:
    chance = _chance(series, recording)
    level, sure = (None, True) if chance is None else (chance.loss, chance.sure)
    trend = judge_series(series.values, _bound(series, recording), level, sure)
    if trend.first_nonfinite is None:
        return trend
    return replace(trend, first_nonfinite=int(series.steps[trend.first_nonfinite]))


def _bound(series: Series, recording: Recording) -> float:
    """The known bound, or 0 for a loss of one's own that was never negative (a hand-written squared error)."""
    known = float(recording.facts.get("loss_lower_bound", -math.inf))
    if math.isfinite(known):
        return known
    finite = series.values[np.isfinite(series.values)]
    return 0.0 if finite.size and finite.min() >= 0 else -math.inf


def _chance(series: Series, recording: Recording) -> _Chance | None:
    family, classes = recording.facts.get("loss_family"), float(recording.facts.get("classes", 0))
    if family in {"cross_entropy", "nll", "bce"}:
        uniform = math.log(2) if family == "bce" else math.log(max(classes, 1))
        operation = _plain_loss(recording)
        if family == "bce" and operation is not None and len(operation.inputs) > 2:
            return None  # weighted: a constant predictor gets another loss
        plain = operation is not None or bool(series.values[:1] <= LIKE_CHANCE * uniform)
        return _Chance(uniform, True) if uniform > 0 and plain else None
    arm = recording.arms.get("overfit/own")
    constant = math.nan if arm is None else float(arm.facts.get("constant", math.nan))
    for estimate in (_variance_of_targets(recording), constant):
        if estimate > 0:  # NaN compares false
            return _Chance(estimate, False)
    return None


def _plain_loss(recording: Recording) -> Operation | None:
    """The loss function, when what `backward` was called on is its mean over the batch and nothing else."""
    graph = recording.graph
    last = None if graph is None or graph.loss is None else graph.producer(graph.loss)
    return last if last is not None and last.attributes.get("reduction") == "mean" else None


def _variance_of_targets(recording: Recording) -> float:
    """The loss of the best constant for a plain mean squared error on the first batch; NaN where it is not known."""
    loss, graph = _plain_loss(recording), recording.graph
    if graph is None or loss is None or loss.name != "mse_loss":
        return math.nan
    targets = [graph.values[i] for i in loss.inputs if not graph.values[i].trained]
    return targets[0].std ** 2 if len(targets) == 1 else math.nan


def _together(trends: list[Trend]) -> Trend:
    """Of several losses: a broken one speaks first, then a learning one, then an unknown one, then a failing one."""
    order = ("non-finite", "falls", "converged", "unknown", "rises", "flat")
    return min(trends, key=lambda t: order.index(t.kind))


def _measure(x: Array, lower_bound: float) -> Trend:
    """Start, end, drop, noise and significance of a finite series."""
    fifth = _fifth(x)
    noise = _noise(x)
    start = min(float(np.median(x[:fifth])), float(x[0]) + 2 * noise)
    end = float(np.median(x[-fifth:]))
    drop = (start - end) / _scale(start, lower_bound)
    return Trend("", drop, noise, start=start, end=end, steps=x.size, z=_mann_kendall(_thin(x)))


def _decide(x: Array, t: Trend, lower_bound: float, chance: _Chance | None) -> tuple[str, str]:
    if _rises(x, t, lower_bound):
        return _unless_unbounded("rises", lower_bound)
    at_chance = chance is not None and t.end >= AT_CHANCE * chance.loss
    stuck = at_chance and chance is not None and chance.sure and not _still_falling(x, lower_bound)
    first = float(x[0])
    falls = t.z <= FALL_Z and t.drop >= MIN_DROP
    fell = (first - 2 * t.noise - t.end) / _scale(first, lower_bound) >= CONVERGED
    if (falls or fell) and not stuck:
        if at_chance:
            return "unknown", NO_BETTER
        return ("falls" if falls else "converged"), ""
    if chance is not None and t.end <= AT_FLOOR * chance.loss:
        return "converged", ""
    if t.z <= MAYBE_Z and x.size < SURE_STEPS:
        return "unknown", f"it seems to fall, by {100 * t.drop:.2g} % in {x.size} steps: too short to tell"
    possible = _possible_drop(x, t, lower_bound)
    if possible > BLIND and not stuck:
        return "unknown", f"a fall by up to {100 * possible:.0f} % could hide in the noise of {x.size} steps"
    return _unless_unbounded("flat", lower_bound)


def _unless_unbounded(kind: str, lower_bound: float) -> tuple[str, str]:
    """A loss that takes both signs, as policy gradients do, is not meant to fall steadily."""
    if math.isfinite(lower_bound):
        return kind, ""
    return "unknown", "the loss has no known lower bound, so it need not fall"


def _rises(x: Array, t: Trend, lower_bound: float) -> bool:
    fifth = _fifth(x)
    best = float(_levels(x, fifth).min())
    gained, lost = t.start - best, t.end - best
    # What a fast start won counts, too: most of it may be won before the first fifth is over, and an adversary takes some back.
    if lost <= 0.5 * (float(x[0]) - 2 * t.noise - best):
        return False
    if t.z >= RISE_Z and -t.drop >= MIN_RISE:
        return True
    clear = 4 * t.noise / math.sqrt(fifth)  # four standard errors of a block's level
    return gained > max(clear, MIN_RISE * _scale(t.start, lower_bound)) and lost > max(clear, 0.5 * gained)


def _still_falling(x: Array, lower_bound: float) -> bool:
    late = x[x.size // 2 :]
    fifth = _fifth(late)
    start, end = float(np.median(late[:fifth])), float(np.median(late[-fifth:]))
    return _mann_kendall(_thin(late)) <= FALL_Z and (start - end) / _scale(start, lower_bound) >= STILL_FALLING


def _possible_drop(x: Array, t: Trend, lower_bound: float) -> float:
    """The largest fall over the window, as a fraction of the start, that the slope's 95 % interval does not exclude."""
    points = _thin(x)
    n = points.size
    rows, columns = np.triu_indices(n, 1)
    slopes = np.sort((points[columns] - points[rows]) / (columns - rows))
    half = 1.96 * math.sqrt(_variance(points))
    lowest = max(0, int((slopes.size - half) / 2))
    return float(-slopes[lowest] * (n - 1) / _scale(t.start, lower_bound))


def _scale(start: float, lower_bound: float) -> float:
    base = abs(start - lower_bound) if math.isfinite(lower_bound) else abs(start)
    return max(base, 1e-12)


def _noise(x: Array) -> float:
    return float(1.4826 * np.median(np.abs(x[1:-1] - (x[:-2] + x[2:]) / 2)) / math.sqrt(1.5))


def _thin(x: Array) -> Array:
    """At most `POINTS` block medians; the series itself when it is short."""
    if x.size <= POINTS:
        return x
    return _levels(x, math.ceil(x.size / POINTS))


def _levels(x: Array, size: int) -> Array:
    """Medians of consecutive blocks of `size` values; what is over is left out at the front."""
    count = x.size // size
    return np.asarray(np.median(x[x.size - count * size :].reshape(count, size), axis=1))


def _fifth(x: Array) -> int:
    return max(2, min(200, x.size // 5))


def _mann_kendall(x: Array) -> float:
    """Z of the Mann-Kendall test, with continuity correction; negative when the series falls."""
    rows, columns = np.triu_indices(x.size, 1)
    s = float(np.sign(x[columns] - x[rows]).sum())
    variance = _variance(x)
    return 0.0 if variance <= 0 or s == 0 else (s - math.copysign(1, s)) / math.sqrt(variance)


def _variance(x: Array) -> float:
    """Variance of Mann-Kendall's S without a trend, corrected for ties and lag-1 autocorrelation around the trend."""
    n = x.size
    _, ties = np.unique(x, return_counts=True)
    base = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    memory = _memory(x) if n >= 2 * MIN_STEPS else 0.0  # fewer values cannot tell it
    return base * (1 + memory) / (1 - memory)


def _memory(x: Array) -> float:
    """Lag-1 autocorrelation around a curve of degree 4 (so that a curved fall is not taken for memory), in [0, 0.6]."""
    steps = np.linspace(-1.0, 1.0, x.size)
    rest = x - np.polyval(np.polyfit(steps, x, 4), steps)
    power = float((rest * rest).sum())
    if power <= 1e-24 * float((x * x).sum()):
        return 0.0
    return min(max(float((rest[1:] * rest[:-1]).sum()) / power, 0.0), MEMORY)
