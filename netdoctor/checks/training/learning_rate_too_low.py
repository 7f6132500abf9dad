"""A learning rate with which nothing moves, proven by higher ones that train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.training import zero_rate
from netdoctor.checks.training.lr_trials import ran, rescue, rescue_on_few, why_not
from netdoctor.checks.training.optimizer_line import setting
from netdoctor.checks.training.update_ratios import medians
from netdoctor.finding import Abstention, Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Role, Stat
from netdoctor.trend import Trend, judge

FACTORS = ("10", "100")


@dataclass(frozen=True)
class LearningRateTooLow(Check):
    """The learning rate is too low: the weights hardly move, and a higher rate trains.

    What it is: updates so small beside the weights that the whole run changes next to nothing.
    Why it hurts: the loss crawls or stands still, and looks like a broken model.
    How it is decided: most weight matrices change by less than 1e-4 of their size per step over the window, the loss
    lost less than a tenth, and on a copy, from the same start on the same batches, a learning rate 10 or 100 times
    higher loses at least 30 % where the script's own loses less than 10 %. All three must hold; without the first where
    a schedule was built and never stepped. Or it is 0 in every step.
    When it stays silent: a pretrained or converged model; a schedule that is warming up or has come to its end; a loss
    that falls; when the trials did not run it abstains.
    Fix: the learning rate that the trial found, in the script's own line.
    Sources: CS231n's notes (1e-3 is healthy, lower is too low); TheDeepChecker (1e-4) and DeepDiagnosis (1e-5).
    """

    name = "learning-rate-too-low"
    needs = frozenset({Stat.RMS})
    arms = frozenset({"trial/control", "trial/lr x10", "trial/lr x100"})
    explains = frozenset({"loss-not-decreasing", "cannot-overfit-tiny-batch", "lost-updates", "sgd-without-momentum"})

    ratio: float = 1e-4  # a tenth of the healthy 1e-3; under it the trial decides
    crawl: float = 0.1  # of the loss over the whole window: more is slow but healthy
    gain: float = 0.3  # of the loss in a trial of some tens of steps: no accident of minibatch noise
    stuck: float = 0.1  # of the loss in the control arm
    schedule: float = 0.5  # of the highest rate: under it at the end, or at the start, a schedule is at work
    steps: int = 30  # a shorter run has had no time to move

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        if zero_rate.is_zero(recording):
            found = rescue(recording, FACTORS, self.gain, self.stuck) or rescue_on_few(recording, up=True)
            yield zero_rate.finding(self.name, recording, found, tuple(medians(recording)))
            return
        if not self._crawls(judge(recording), recording) or not (ratios := medians(recording)):
            return
        typical = float(np.median(list(ratios.values())))
        waits = bool(recording.facts.get("scheduler_never_stepped"))  # then the trials alone decide
        if not 0 < typical < (math.inf if waits else self.ratio):
            return
        if ran(recording, "trial/control") is None:
            yield Abstention(self.name, why_not(recording))
            return
        found = rescue(recording, FACTORS, self.gain, self.stuck) or rescue_on_few(recording, up=True)
        if found is None:
            return
        low = tuple(name for name, value in ratios.items() if value < self.ratio or waits)
        site = recording.parameters[min(low, key=lambda name: abs(ratios[name] - typical))].site(Role.UPDATE)
        measured = Evidence("update ratio, median", typical, "<", self.ratio, "", site, Stat.RMS)
        yield Finding(
            self.name,
            f"the learning rate {found.old:g} is too low: at {found.lr:g} it trains from the same start",
            Severity.WARNING,
            f"A step changes the weights by {typical:.1e} of their size (1e-3 is usual), so the loss hardly moves.",
            Location.at(setting(recording)),
            (*(() if waits else (measured,)), *found.evidence(self.gain, self.stuck)),
            (found.fix(recording, "raise-learning-rate"),),
            found.certainty,
            places=low,
            share=len(low) / len(ratios),
        )

    def _crawls(self, trend: Trend, recording: Recording) -> bool:
        still = trend.kind == "flat" or (trend.kind == "falls" and trend.drop < self.crawl)
        pretrained = bool(recording.facts.get("pretrained"))
        return still and trend.steps >= self.steps and not pretrained and not self._scheduled(recording)

    def _scheduled(self, recording: Recording) -> bool:
        """Whether a schedule has lowered the rate by the end, or still warms it up."""
        series = recording.scalars.get("lr")
        if series is None or series.values.size == 0:
            return False
        highest = float(series.values.max())
        return float(min(series.values[0], series.values[-1])) < self.schedule * highest
