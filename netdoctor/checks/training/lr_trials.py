"""What the learning-rate trials say: whether another learning rate trains on a copy where the script's own does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netdoctor.checks.training.optimizer_line import rewritten
from netdoctor.finding import Certainty, Evidence, Fix, Reach, Trial, Verdict
from netdoctor.recording import Arm, Array, Recording
from netdoctor.trend import Trend, judge_series

ON_FEW, ADAM_ON_FEW = "overfit/own lr x", "overfit/adam "
DECADE = 10.0  # between two rates of Adam: nearer ones train alike
STEPS = 8  # an arm with fewer losses has no trend
BLOWN, CALM = 10.0, 2.0  # times the first loss: no noise of a minibatch, and what such noise may do


@dataclass(frozen=True, slots=True)
class Rescue:
    """A learning rate that trains from the same start on the same batches, beside the control that does not.

    `lost` and `control_lost` are the fractions of the common starting loss that each arm lost; minus infinity for an
    arm that ended in NaN or Inf.
    """

    lr: float
    old: float
    lost: float
    control_lost: float
    control: Arm
    treated: Arm
    furthest: bool = False  # no rate further from the script's own was tried
    few: bool = False  # both arms repeat a tiny batch
    slow: float = 0.0  # what the control may lose, where it did more than stand still
    blown: float = 0.0  # times its first loss: what the control came to on its way, where that is what tells

    @property
    def certainty(self) -> Certainty:
        """Proven on the script's own batches; what holds on a tiny batch is measured there."""
        return Certainty.MEASURED if self.few else Certainty.PROVEN

    @property
    def what(self) -> str:
        """What only the lower rate does."""
        if self.blown:
            return "brings the loss down without driving it up first"
        return "fits a tiny batch" if self.few else "brings the loss down"

    def evidence(self, gain: float, stuck: float) -> tuple[Evidence, ...]:
        """Both fractions beside their limits, or how far up both losses went."""
        if self.blown:
            times = [peak(arm.losses) for arm in (self.control, self.treated)]
            return (
                Evidence(f"largest loss over the first at lr {self.old:g}", times[0], "≥", BLOWN),
                Evidence(f"largest loss over the first at lr {self.lr:g}", times[1], "≤", CALM),
            )
        if self.few:
            name = f"fall of the loss on a tiny batch at lr {self.lr:g}, that at {self.old:g} as the limit"
            return (Evidence(name, 100 * self.lost, ">", 100 * self.control_lost, "%"),)
        return (
            Evidence(f"fall of the loss at lr {self.lr:g}", 100 * self.lost, "≥", 100 * gain, "%"),
            Evidence(
                f"fall of the loss at lr {self.old:g}", 100 * self.control_lost, "<", 100 * max(stuck, self.slow), "%"
            ),
        )

    def fix(self, recording: Recording, treatment: str) -> Fix:
        """The learning rate that the trial found, in the user's own line, with both curves."""
        steps, start = len(self.treated.losses), float(self.treated.losses[0])
        ends = f"{start:.3g} → {level(self.treated):.3g} at {self.lr:g}, {level(self.control):.3g} at {self.old:g}"
        says = f"loss on a copy after {steps} steps: {ends}"
        if self.blown:
            tops = [max(map(float, arm.losses)) for arm in (self.treated, self.control)]
            says = (
                f"largest loss on a copy in {steps} steps: {tops[0]:.3g} at {self.lr:g}, {tops[1]:.3g} at {self.old:g}"
            )
        seconds = self.control.seconds + self.treated.seconds
        curves = tuple(map(float, self.control.losses)), tuple(map(float, self.treated.losses))
        trial = Trial(Verdict.CURED, *curves, steps=steps, seconds=seconds, says=says)
        own = float(self.control.facts.get("lr", math.nan))
        code = rewritten(recording, self.lr, own)
        beyond = " It is the furthest that was tried, so look beyond it as well." if self.furthest else ""
        return Fix(treatment, f"Set the learning rate to {self.lr:g} ({says}).{beyond}", code, Reach.RUN, trial)


def rescue(
    recording: Recording, factors: Sequence[str], gain: float, stuck: float, times: float = math.inf
) -> Rescue | None:
    """The best learning rate of `factors` ("0.1"), if it lost `gain` of the loss and the control less than `stuck`.

    Or, in trials that were made longer for it, `times` as much as the control and at least twice `gain`.
    """
    control = ran(recording, "trial/control")
    arms = [(factor, ran(recording, f"trial/lr x{factor}")) for factor in factors]
    there = [(factor, arm) for factor, arm in arms if arm is not None]
    if control is None or not there:
        return None
    factor, best = min(there, key=lambda pair: level(pair[1]))
    bound = float(recording.facts.get("loss_lower_bound", -math.inf))
    if not math.isfinite(bound) and bool((best.losses >= 0).all()):
        bound = 0.0  # a hand-written loss that was never negative
    start = _start([arm for _, arm in there], control, bound)
    lost, control_lost = (_lost(arm, start, bound) for arm in (best, control))
    longer = bool(best.facts.get("longer")) and bool(control.facts.get("longer")) and lost >= 2 * gain
    slow = lost / times if longer else 0.0
    if not (judge_series(best.losses, bound).learning and lost >= gain and control_lost < max(stuck, slow)):
        return None
    old = recording.optimizers[0].lr if recording.optimizers else math.nan
    old = float(control.facts.get("lr", old))  # that of a warm-up's first step is not what the script means
    lr, furthest = float(best.facts.get("lr", old * float(factor))), factor == factors[-1]
    known = math.isfinite(lr)  # that of a loop without an optimizer is found out by the trials, or not at all
    return Rescue(lr, old, lost, control_lost, control, best, furthest, slow=slow) if known else None


def overshoot(recording: Recording, factors: Sequence[str], gain: float) -> Rescue | None:
    """The nearest learning rate that brings the loss down at once, where the script's own multiplies it first.

    For trials on a few samples again and again, which any rate may learn by heart in the end: there the script's own
    training must have been driven up as well, and must not have come below its start again.
    """
    control, series = ran(recording, "trial/control"), recording.loss
    if control is None or series is None or len(series.values) < STEPS or not peak(control.losses) >= BLOWN:
        return None
    late = series.values[-max(2, len(series.values) // 5) :]
    if not peak(series.values) >= BLOWN or float(np.median(late)) < series.values[0]:
        return None
    for factor in factors:
        arm = ran(recording, f"trial/lr x{factor}")
        if arm is not None and peak(arm.losses) <= CALM and level(arm) <= (1 - gain) * float(arm.losses[0]):
            lr, old = (float(one.facts.get("lr", math.nan)) for one in (arm, control))
            lost, own = (1 - level(one) / float(one.losses[0]) for one in (arm, control))
            found = Rescue(lr, old, lost, own, control, arm, blown=peak(control.losses))
            return found if math.isfinite(lr) and math.isfinite(old) else None
    return None


def peak(losses: Array) -> float:
    """The largest loss over the first one; infinite where one is NaN or Inf, 0 where the first is not above zero."""
    if not np.isfinite(losses).all():
        return math.inf
    return float(losses.max() / losses[0]) if losses[0] > 0 else 0.0


def rescue_on_few(recording: Recording, up: bool) -> Rescue | None:
    """A multiple of the script's learning rate, above (`up`) or below it, that fits a tiny batch which its own cannot fit.

    Where the script trains with Adam, what Adam did at usual rates counts as well.
    """
    control = ran(recording, "overfit/own")
    if control is None or control.facts.get("reached") is not False:
        return None
    old = float(control.facts.get("lr", math.nan))
    for name, arm in recording.arms.items():
        factor = _factor(name, arm, old, recording)
        if factor != 1.0 and (factor > 1.0) == up and arm.facts.get("reached") is True:
            lost, control_lost = (float(a.facts.get("falls", 0.0)) for a in (arm, control))
            return Rescue(float(arm.facts.get("lr", old * factor)), old, lost, control_lost, control, arm, few=True)
    return None


def _factor(name: str, arm: Arm, old: float, recording: Recording) -> float:
    """By what an arm on a tiny batch multiplies the script's learning rate; 1 where it is no such arm."""
    if name.startswith(ON_FEW):
        return float(name.removeprefix(ON_FEW))
    adam = name.startswith(ADAM_ON_FEW) and recording.optimizers and recording.optimizers[0].type in ("Adam", "AdamW")
    if adam and old == 0:
        return math.inf
    factor = float(arm.facts.get("lr", math.nan)) / old if adam and old > 0 else 1.0
    return factor if factor >= DECADE or factor <= 1 / DECADE else 1.0


def works(trend: Trend, enough: float) -> bool:
    """Whether the real training learns so well that its learning rate needs no trial."""
    return trend.kind == "converged" or (trend.kind == "falls" and trend.drop >= enough)


def fell_until_broken(recording: Recording, enough: float) -> bool:
    """Whether the loss had come down by a share of `enough`, and was not on its way up again, when it became NaN or Inf."""
    series = recording.loss
    if series is None or np.isfinite(series.values).all():
        return False
    values = series.values[: int(np.argmin(np.isfinite(series.values)))]
    if len(values) < STEPS:
        return False
    parts = [float(np.median(part)) for part in np.array_split(values, 4)]
    low = parts[-1] <= min(parts) and float(values[-2:].max()) <= parts[0]
    return parts[0] > 0 and parts[-1] <= (1 - enough) * parts[0] and low


def ran(recording: Recording, name: str) -> Arm | None:
    """An arm that ran long enough to be judged: until it broke, where it did."""
    arm = recording.arms.get(name)
    if arm is None or arm.failure or len(arm.losses) == 0:
        return None
    broke = len(arm.losses) > 1 and math.isfinite(arm.losses[0]) and not math.isfinite(arm.losses[-1])
    return arm if broke or len(arm.losses) >= STEPS else None


def why_not(recording: Recording) -> str:
    """Why the trials cannot be read."""
    arm = recording.arms.get("trial/control")
    if arm is None:
        return "experiments were off, or their budget ran out before the learning-rate trials"
    return arm.failure or f"the trials took {len(arm.losses)} steps, {STEPS} are needed"


def _start(arms: Sequence[Arm], control: Arm, bound: float) -> float:
    """The level that all arms start from, as the slowest of them shows it; of the control no more than its first loss,
    as it may jump right after."""
    own = min(judge_series(control.losses, bound).start, float(control.losses[0]))
    trends = [judge_series(arm.losses, bound) for arm in arms]
    return max([t.start for t in trends if t.kind not in {"rises", "non-finite"}] + [own])


def _lost(arm: Arm, start: float, bound: float) -> float:
    scale = start - bound if math.isfinite(bound) else abs(start)
    return (start - level(arm)) / scale if scale > 0 else 0.0


def level(arm: Arm) -> float:
    """Where an arm ends: the median of the last fifth of the losses; infinite when one of them is NaN or Inf."""
    tail = arm.losses[-max(2, len(arm.losses) // 5) :]
    return float(np.median(tail)) if np.isfinite(tail).all() else math.inf
