"""A loss that grows, or that is maximised because of a sign."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.training.negated_loss import negated
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation
from netdoctor.recording import Recording
from netdoctor.trend import FALL_Z, MIN_RISE, Trend, judge


@dataclass(frozen=True)
class LossDiverging(Check):
    """The training loss rises by a significant trend, or falls below the lowest value that it can take.

    What it is: the updates make the model worse, or make it better at the opposite.
    Why it hurts: each further step is harm; sooner or later the loss is NaN.
    How it is decided: the loss ends at least a fifth above its start (doubled, for a loss of one's own making) with a
    Mann-Kendall test at 0.1 %, or more than half of what it had gained is lost again. Or a loss that cannot be negative
    goes down through zero by half of its start: the sign is flipped, or its inputs are not what it asks for. A loss
    that is the plain negative of a known one is named as such.
    When it stays silent: GAN, RL, several optimizers, moving targets; losses that end as NaN (the non-finite checks
    speak); losses without a known lower bound.
    Fix: drop the minus sign; else the cause found.
    Sources: trainproof (end 1.5 times above its lowest) and DeepDiagnosis (twice); FSDL (rises: flipped sign, or rate).
    """

    name = "loss-diverging"
    explains = frozenset({"loss-not-decreasing", "non-finite-parameter", "unstable-loss"})

    own_rise: float = 1.0  # of the start: an annealed term may raise a loss of one's own, hardly double it
    below: float = 0.5  # of the start: an entropy bonus or a rounding error takes less off a bounded loss

    def judge(self, recording: Recording) -> Iterator[Finding]:
        trend = judge(recording)
        known = recording.facts.get("loss_family", "custom") != "custom"
        minus = negated(recording)
        if trend.kind == "rises" and (known or -trend.drop >= self.own_rise):
            yield self._rising(trend, recording)
        elif self._maximised(trend, minus, recording) or (known and self._below(trend, recording)):
            yield self._negative(trend, minus, recording)

    def _maximised(self, trend: Trend, minus: Operation | None, recording: Recording) -> bool:
        played = recording.facts.get("moving_target") or recording.facts.get("several_optimizers")
        return minus is not None and not played and trend.z <= FALL_Z and trend.end < 0

    def _below(self, trend: Trend, recording: Recording) -> bool:
        bound = float(recording.facts.get("loss_lower_bound", -math.inf))
        return (
            trend.kind != "unknown"
            and math.isfinite(bound)
            and trend.z <= FALL_Z
            and trend.end < bound - self.below * abs(trend.start - bound)
        )

    def _rising(self, trend: Trend, recording: Recording) -> Finding:
        series = next(iter(recording.losses.values()))
        evidence = Evidence("loss at the end", trend.end, ">", (1 + MIN_RISE) * trend.start)
        says = "It rises by more than minibatch noise explains."
        if trend.end <= evidence.limit:
            evidence = Evidence("loss at the end", trend.end, ">", float(np.nanmin(series.values)))
            says = "It had fallen, and more than half of that was lost again."
        own = recording.arms.get("overfit/own")
        if own is not None and own.facts.get("reached"):
            says += " On one tiny batch the same optimizer brings it down, so the sign of the loss is right."
        step = int(series.steps[int(np.nanargmin(series.values))])
        title = f"the loss rises: {trend.start:.4g} at the start, {trend.end:.4g} after {trend.steps} steps"
        return Finding(self.name, title, Severity.ERROR, says, Location(step=step), (evidence,), first_step=step)

    def _negative(self, trend: Trend, minus: Operation | None, recording: Recording) -> Finding:
        family = str(recording.facts.get("loss_family", "loss"))
        evidence = (Evidence("loss at the end", trend.end, "<", 0.0),)
        says = f"{family} cannot be negative: either its sign is flipped, so that training makes the model worse, "
        says += "or its inputs are not what it asks for (probabilities, log-probabilities, targets in [0, 1])."
        if minus is None:
            title = f"the loss fell to {trend.end:.4g}, below the lowest value of {family}"
            return Finding(self.name, title, Severity.ERROR, says, Location(step=0), evidence)
        at = Location(operation="neg", file=minus.file or None, line=minus.line or None, step=0)
        title = f"the loss is maximised: a minus sign turns it round, and it fell to {trend.end:.4g}"
        fix = Fix("drop-minus-sign", "Minimise the loss itself: drop the minus sign in this line.", reach=Reach.RUN)
        return Finding(self.name, title, Severity.ERROR, says, at, evidence, (fix,), first_step=0)
