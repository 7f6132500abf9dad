"""A learning rate with which updates overshoot, proven by lower ones that train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training import lr_trials, slow_rate
from netdoctor.checks.training.lr_trials import Rescue, fell_until_broken, ran, rescue, rescue_on_few, why_not, works
from netdoctor.checks.training.optimizer_line import setting, with_lr
from netdoctor.checks.training.update_ratios import medians
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Role, Stat
from netdoctor.trend import judge

FACTORS = ("0.1", "0.01")
SYMPTOMS = """
loss-diverging loss-not-decreasing unstable-loss exploding-gradients exploding-activations vanishing-gradients dead-relu
saturated-activation constant-layer input-independent-output cannot-overfit-tiny-batch non-finite-activation
non-finite-gradient non-finite-parameter half-precision-overflow
"""


@dataclass(frozen=True)
class LearningRateTooHigh(Check):
    """The learning rate is too high: updates overshoot, and the loss does not fall though a lower rate trains.

    What it is: one update moves the weights past what the gradient knows about, so the next one has to undo it.
    Why it hurts: the loss oscillates, grows or becomes NaN; ReLU units die and sigmoids saturate on the way.
    How it is decided: by trial. From the same start on the same batches, on a copy, a learning rate 10 or 100 times
    lower loses at least 30 % of the loss where the script's own loses less than 10 %; or, in three times as many steps,
    60 % and four times what the script's own does; or brings it down where the script's own multiplies it by ten first,
    as in its run, which never came below its start again. A warning where training works, but a tenth of the rate leaves
    half of the loss that its own leaves in as many steps, and less than the whole run. Without the trials only a flagrant
    case is reported: half of the weight matrices change by over a tenth per step while the loss does not fall.
    When it stays silent: the training learns, or did until an operation broke (a lower rate would only break it later);
    lower rates train no better; biases, norms, embeddings and zero-initialised matrices; Adam's and a warm-up's start.
    Fix: the learning rate that the trial found, in the script's own line.
    Sources: CS231n's notes (healthy update ratio about 1e-3); TheDeepChecker and DeepDiagnosis (upper limit 1e-1).
    """

    name = "learning-rate-too-high"
    needs = frozenset({Stat.RMS})
    arms = frozenset({"trial/control", "trial/lr x0.1", "trial/lr x0.01", slow_rate.OWN, slow_rate.LOWER})
    explains = frozenset(SYMPTOMS.split())

    ratio: float = 0.1  # per step and weight; a hundred times what is healthy (CS231n)
    share: float = 0.5  # of the weight matrices: a single one may have a small scale on purpose
    gain: float = 0.3  # of the loss in a trial of some tens of steps: no accident of minibatch noise
    stuck: float = 0.1  # of the loss: a control that loses more is slow rather than broken
    times: float = 4.0  # what a slow control loses in a longer trial
    learning: float = 0.2  # of the loss in the real run: it trains, whatever a short trial says

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        trend = judge(recording)
        if works(trend, self.learning) or fell_until_broken(recording, self.learning):
            slow = slow_rate.finding(self.name, recording, trend)
            yield from () if slow is None else (slow,)
            return
        found = rescue(recording, FACTORS, self.gain, self.stuck, self.times)
        found = found or lr_trials.overshoot(recording, FACTORS, self.gain)
        if found is None and trend.failing and not _came_broken(recording):
            found = rescue_on_few(recording, up=False)
        if found is not None:
            yield self._proven(found, recording)
        elif ran(recording, "trial/control") is None and trend.failing and not _came_broken(recording):
            ratios = medians(recording)
            high = {name: value for name, value in ratios.items() if value > self.ratio}
            if recording.optimizers and high and len(high) >= self.share * len(ratios):
                yield self._flagrant(high, len(high) / len(ratios), recording)
            else:
                yield Abstention(self.name, why_not(recording))

    def _proven(self, found: Rescue, recording: Recording) -> Finding:
        title = f"the learning rate {found.old:g} is too high: at {found.lr:g} it trains from the same start"
        says = f"On a copy, from the same weights on the same batches, only the lower learning rate {found.what}."
        fixes = (found.fix(recording, "lower-learning-rate"),)
        evidence = found.evidence(self.gain, self.stuck)
        at, sure = Location.at(setting(recording)), found.certainty
        return Finding(self.name, title, Severity.ERROR, says, at, evidence, fixes, sure, first_step=1, share=1.0)

    def _flagrant(self, high: dict[str, float], share: float, recording: Recording) -> Finding:
        optimizer = recording.optimizers[0]
        worst = max(high, key=lambda name: high[name])
        site = recording.parameters[worst].site(Role.UPDATE)
        evidence = (Evidence("update ratio, median", high[worst], ">", self.ratio, "", site, Stat.RMS),)
        title = f"the learning rate {optimizer.lr:g} changes {worst} by {100 * high[worst]:.0f} % per step"
        says = f"{len(high)} weight matrices change by more than {self.ratio:g} of their size per step; 1e-3 is usual."
        lower = optimizer.lr / 10
        fixes = (Fix("lower-learning-rate", f"Try {lower:g}.", with_lr(optimizer, lower), Reach.RUN),)
        at = Location.at(optimizer.source)
        return Finding(
            self.name, title, Severity.ERROR, says, at, evidence, fixes, Certainty.INFERRED, 1, tuple(high), share
        )


def _came_broken(recording: Recording) -> bool:
    return recording.origin is not None and recording.origin.phase in {"input", "parameter"}
