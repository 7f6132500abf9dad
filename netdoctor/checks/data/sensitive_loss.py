"""The check `sensitive-loss`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.scale_trial import location
from netdoctor.data import TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class SensitiveLoss(Check):
    """A squared error over targets of which a few lie far out: they make most of the loss.

    What it is: mean squared error on targets with outliers or a heavy tail.
    Why it hurts: an error ten times as large counts a hundred times: the few decide where the model goes.
    How it is decided: a mean squared error, and a target of at least 200 sampled values whose standard deviation is 3
    times its robust deviation or more and whose range reaches 20 robust deviations from the median.
    When it stays silent: targets that are mostly one value (sparse ones), whole numbers, other losses. Advice only.
    Fix: L1 or Huber, or the logarithm of the target.
    Sources: Huber, Robust Estimation of a Location Parameter, 1964; advice B-8.
    """

    name = "sensitive-loss"

    rows: int = 200  # the robust deviation is then known to a tenth
    spread: float = 3.0  # standard over robust deviation: 1 of normal values, 1.5 to 2 of exponential ones
    reach: float = 20.0  # robust deviations from the median: normal values end at 4

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if recording.facts.get("loss_family") != "mse" or recording.facts.get("moving_target"):
            return
        for facts in recording.targets:
            if facts.rows >= self.rows and not facts.integral and facts.columns.std.size == 1:
                yield from self._judged(facts)

    def _judged(self, facts: TensorFacts) -> Iterator[Finding]:
        columns = facts.columns
        robust, middle = float(columns.spread[0]), float(columns.median[0])
        if robust <= 0:
            return
        ratio = float(columns.std[0]) / robust
        reach = float(np.maximum(columns.high[0] - middle, middle - columns.low[0])) / robust
        if ratio >= self.spread and reach >= self.reach:
            yield Finding(
                self.name,
                f"a squared error over targets that reach {reach:.0f} robust deviations from their median",
                Severity.ADVICE,
                f"Their standard deviation is {ratio:.1f} times the robust one: a few of them make most of the loss.",
                location(facts),
                (
                    Evidence("standard over robust deviation of the target", ratio, "≥", self.spread),
                    Evidence("reach of the target, in robust deviations", reach, "≥", self.reach),
                ),
                (Fix("huber-loss", "Take a loss that grows slower.", f"nn.HuberLoss(delta={robust:.3g})", Reach.RUN),),
                first_step=0,
                share=1.0,
            )
