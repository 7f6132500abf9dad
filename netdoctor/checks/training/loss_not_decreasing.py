"""A loss that does not fall: the symptom that needs a cause, with what the experiments ruled out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Location, Severity
from netdoctor.recording import Arm, Recording
from netdoctor.trend import MIN_DROP, Trend, judge


@dataclass(frozen=True)
class LossNotDecreasing(Check):
    """The training loss shows no significant fall, and is not at a floor.

    What it is: a symptom. Something else in this report, or something that no check knows, keeps the model from
    learning.
    Why it hurts: the model at the end is no better than at the start.
    How it is decided: over at least 30 steps a trend test (Mann-Kendall, 1 %) finds no fall of 1 % or more, or only one
    down to the loss of a constant predictor. Where a copy of the model can fit a tiny batch the wiring is sound, so 100
    steps are asked for and it is a warning. A loss of one's own making counts only when the tiny batch was not fitted.
    When it stays silent: converged or pretrained models; GAN, RL and other moving targets; a fall that noise may hide;
    runs that end as NaN (the non-finite checks speak); learning rates that stay at zero.
    Fix: the cause. The explanation lists what the experiments ruled out.
    Sources: Mann 1945 and Sen 1968 (trend test); Karpathy's recipe and FSDL (overfit one batch before all else).
    """

    name = "loss-not-decreasing"
    arms = frozenset({"overfit/own", "trial/control"})

    steps: int = 30  # a healthy start may stay flat for some tens of steps, hardly longer
    steps_if_fitted: int = 100  # a model that fits a batch gets the time of a slow but sound start

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        trend = judge(recording)
        if trend.kind == "unknown" and recording.losses:
            yield Abstention(self.name, trend.reason)
        if trend.kind != "flat" or recording.facts.get("pretrained") or trend.steps < self.steps:
            return
        if self._resting(recording):
            return
        fitted = _fitted(recording)
        if fitted and trend.steps < self.steps_if_fitted:
            return
        if fitted is not False and recording.facts.get("loss_family", "custom") == "custom":
            yield Abstention(self.name, "the loss is of the script's own making, so whether it must fall is not known")
            return
        yield self._finding(trend, fitted, recording)

    def _finding(self, trend: Trend, fitted: bool | None, recording: Recording) -> Finding:
        evidence = Evidence("fall of the loss from start to end", 100 * trend.drop, "<", 100 * MIN_DROP, "%")
        known = " ".join(_ruled_out(fitted, recording)) or "No experiment ran, so nothing is ruled out."
        return Finding(
            self.name,
            f"the loss does not fall: {trend.start:.4g} at the start, {trend.end:.4g} after {trend.steps} steps",
            Severity.WARNING if fitted else Severity.ERROR,
            f"{known} What to look at first: the inputs and targets as the model sees them, then the learning rate.",
            Location(),
            (evidence,) if trend.drop < MIN_DROP else (),
            certainty=Certainty.MEASURED,
        )

    def _resting(self, recording: Recording) -> bool:
        if not recording.optimizers and not recording.facts.get("parameters_changed"):
            return True  # gradients are only looked at, as in saliency maps or adversarial examples
        rates = recording.scalars.get("lr")
        return rates is not None and rates.values.size > 0 and float(rates.values.max()) == 0


def _fitted(recording: Recording) -> bool | None:
    """Whether a copy could fit a tiny batch with any optimizer; None when that was not tried."""
    arms = [a for name, a in recording.arms.items() if _is_plain_overfit(name) and not a.failure]
    return any(bool(arm.facts.get("reached")) for arm in arms) if arms else None


def _is_plain_overfit(name: str) -> bool:
    return name == "overfit/own" or name.startswith("overfit/adam")


def _ruled_out(fitted: bool | None, recording: Recording) -> Iterator[str]:
    if fitted is not None:
        yield "A copy can fit a tiny batch." if fitted else "Not even a tiny batch can be fitted on a copy."
    ends = {name: _end(arm) for name, arm in recording.arms.items() if name.startswith("trial/") and not arm.failure}
    control = ends.pop("trial/control", None)
    if control is not None and ends:
        best = min(ends, key=lambda name: ends[name])
        says = "better" if ends[best] < 0.9 * control else "no better"
        yield f"Of other learning rates {best.removeprefix('trial/lr ')} does best, and {says}: {ends[best]:.3g}."


def _end(arm: Arm) -> float:
    return float(arm.losses[-1]) if arm.losses.size and arm.losses[-1] == arm.losses[-1] else float("inf")
