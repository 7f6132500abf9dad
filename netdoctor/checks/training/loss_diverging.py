"""A loss that grows, or that is maximised because of a sign."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.training.negated_loss import maximising, negated, without_maximize
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation
from netdoctor.recording import Optimizer, Recording
from netdoctor.trend import FALL_Z, MIN_RISE, Trend, judge

SYMPTOMS = """
loss-not-decreasing unstable-loss non-finite-parameter non-finite-gradient non-finite-activation exploding-activations
exploding-gradients saturated-activation dead-relu constant-layer vanishing-gradients cannot-overfit-tiny-batch
"""


@dataclass(frozen=True)
class LossDiverging(Check):
    """The training loss rises by a significant trend, or falls below the lowest value that it can take.

    What it is: the updates make the model worse, or make it better at the opposite.
    Why it hurts: each further step is harm; sooner or later the loss is NaN.
    How it is decided: the loss ends at least a fifth above its start (doubled, for a loss of one's own making) with a
    Mann-Kendall test at 0.1 %, or more than half of what it had gained is lost again. Or a loss that cannot be negative
    goes down through zero by half of its start: the sign is flipped, or its inputs are not what it asks for. A minus
    sign before a known loss and an optimizer with maximize=True are named.
    When it stays silent: GAN, RL, several optimizers, moving targets; losses that end as NaN (the non-finite checks
    speak); losses without a known lower bound.
    Fix: drop the minus sign; else the cause found.
    Sources: trainproof (end 1.5 times above its lowest) and DeepDiagnosis (twice); FSDL (rises: flipped sign, or rate).
    """

    name = "loss-diverging"
    explains = frozenset(SYMPTOMS.split())

    own_rise: float = 1.0  # of the start: an annealed term may raise a loss of one's own, hardly double it
    own_objective: float = 9.0  # of the start, under maximize=True: a reward may be meant to grow, not tenfold
    below: float = 0.5  # of the start: an entropy bonus or a rounding error takes less off a bounded loss

    def judge(self, recording: Recording) -> Iterator[Finding]:
        trend = judge(recording)
        known = recording.facts.get("loss_family", "custom") != "custom"
        minus, turned = negated(recording), maximising(recording)
        limit = self.own_rise if turned is None else self.own_objective
        if trend.kind == "rises" and (known or -trend.drop >= limit):
            yield self._rising(trend, turned, recording)
        elif self._maximised(trend, minus, recording) or (known and self._below(trend, recording)):
            yield self._negative(trend, minus, recording)

    def _maximised(self, trend: Trend, minus: Operation | None, recording: Recording) -> bool:
        played = recording.facts.get("moving_target") or recording.facts.get("several_optimizers")
        fell = trend.z <= FALL_Z or (trend.kind == "non-finite" and trend.end < 2 * trend.start)  # what was left of it
        return minus is not None and not played and fell and trend.end < 0

    def _below(self, trend: Trend, recording: Recording) -> bool:
        bound = float(recording.facts.get("loss_lower_bound", -math.inf))
        falls = trend.kind != "unknown" and trend.z <= FALL_Z
        return falls and math.isfinite(bound) and trend.end < bound - self.below * abs(trend.start - bound)

    def _rising(self, trend: Trend, turned: Optimizer | None, recording: Recording) -> Finding:
        series = next(iter(recording.losses.values()))
        evidence = Evidence("loss at the end", trend.end, ">", (1 + MIN_RISE) * trend.start)
        says = "It rises by more than minibatch noise explains."
        if trend.end <= evidence.limit:
            evidence = Evidence("loss at the end", trend.end, ">", float(np.nanmin(series.values)))
            says = "It had fallen, and more than half of that was lost again."
        own = recording.arms.get("overfit/own")
        if own is not None and own.facts.get("reached"):
            says += " On one tiny batch the same optimizer brings it down, so the sign of the loss is right."
        step = 1 + int(series.steps[int(np.nanargmin(series.values))])
        title = f"the loss rises: {trend.start:.4g} at the start, {trend.end:.4g} after {trend.steps} steps"
        if (
            turned is None
        ):  # a symptom: what came before the end of the window may be its cause, not the other way round
            last = int(series.steps[-1])
            return Finding(self.name, title, Severity.ERROR, says, Location(step=step), (evidence,), first_step=last)
        says = f"{turned.type} was built with maximize=True: every step goes up the loss. {says}"
        fix = Fix("drop-maximize", "Drop maximize=True.", without_maximize(turned), Reach.RUN)
        at = Location.at(turned.source, step=step)
        return Finding(self.name, title, Severity.ERROR, says, at, (evidence,), (fix,), first_step=1)

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
