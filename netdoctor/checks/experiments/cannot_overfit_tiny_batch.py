"""A model that cannot even learn a handful of samples by heart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from netdoctor.check import Check
from netdoctor.checks.experiments import overfit_arms as overfit
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording
from netdoctor.trend import judge

MEANINGS = {
    "non-finite": "The loss became NaN or Inf: look at the numerics and the initialisation.",
    "rises": "The loss rises: look for a flipped sign, a softmax over the wrong dimension, too high a learning rate.",
    "constant": "It stops where a constant prediction would: the output ignores the input, or no gradient arrives.",
    "plateau": "It falls, then stops: the model cannot tell the samples apart, or the loss asks for something else.",
}


@dataclass(frozen=True)
class CannotOverfitTinyBatch(Check):
    """The model cannot fit one tiny batch, with the script's own optimizer or any of a sweep of Adam.

    What it is: a network with far more weights than samples should learn a few of them by heart.
    Why it hurts: what cannot fit a few samples cannot learn from many; the structure, the loss or the data is broken.
    How it is decided: by experiment on a copy: the loss on one small batch does not get to its floor (classes: all
    right; regression: far under the best constant), with the script's optimizer and with Adam at 1e-2, 1e-3 and 1e-4.
    Then one thing at a time is removed or mended; what makes it fit is named.
    When it stays silent: any Adam setting fits and the real run learns (the learning-rate checks say the rest); the
    real run lost half of its loss, or learns and the copy got most of the way; a loss that is neither of classes nor
    regression, unless it never falls; a copy that lost 95 %, of a sampling model or a run of a few steps; experiments
    under 50 steps.
    Fix: what unblocked it; else the cause found.
    Sources: Karpathy's recipe (overfit one batch), CS231n (20 examples to zero cost), FSDL (rises, explodes, plateaus).
    """

    name = "cannot-overfit-tiny-batch"
    arms = frozenset({overfit.OWN, "overfit/adam 0.01", "overfit/adam 0.001", "overfit/adam 0.0001"})
    explains = frozenset({"loss-not-decreasing", "initial-loss"})

    stuck: float = 0.95  # of the loss left: the script's own optimizer made no progress at all
    poor: float = 0.5  # of the loss left: under it the copy got most of the way, as a bottleneck or dropout allows
    half: float = 0.5  # of the loss: a real run that lost it learns, whatever the copy did
    steps: int = 50  # in fewer steps a sound model may not get to the floor
    drawn: float = 0.05  # of the loss left: as much may be due to random numbers that a model draws by itself
    other: float = 0.99  # of the loss left: what a loss of unknown kind must not get under

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arms = overfit.ran(recording)
        if not arms:
            yield Abstention(self.name, overfit.why_not(recording))
        elif not any(map(overfit.reached, arms)):
            yield from self._nothing_fits(arms, recording)
        elif not overfit.reached(arms[0]):
            yield from self._only_settings(arms, recording)

    def _only_settings(self, arms: list[Arm], recording: Recording) -> Iterator[Finding]:
        """The structure is sound; the settings are blamed only when they fail in the real run as well."""
        own, other = arms[0], next(filter(overfit.reached, arms))
        if own.name != overfit.OWN or overfit.remaining(own) < self.stuck or not judge(recording).failing:
            return
        title = "the script's own optimizer settings cannot fit a tiny batch, though the model can"
        says = f"{overfit.adam(other)} fits it, so the structure is sound: look at the optimizer and its rate."
        fix = Fix("adam", f"Use {overfit.adam(other)}.", overfit.adam_code(other), Reach.RUN)
        yield self._finding(title, Severity.WARNING, says, own, (fix,), recording)

    def _nothing_fits(self, arms: list[Arm], recording: Recording) -> Iterator[Finding | Abstention]:
        best = min(arms, key=overfit.remaining)
        left = overfit.remaining(best)
        causes, trend = overfit.unblocked(recording), judge(recording)
        drawn = overfit.draws(recording, trend.kind == "unknown") if left < self.drawn else ""
        reason = drawn or overfit.unclear(recording, arms, self.steps, trend.kind != "unknown" and left >= self.other)
        if reason:
            yield Abstention(self.name, reason)
            return
        if trend.learning and (left < self.poor or causes or trend.kind == "converged" or trend.drop >= self.half):
            return
        least, floor = overfit.number(best, "best"), overfit.number(best, "floor")
        little = f"its loss stays at {least:.2g}, above the {floor:.2g} that it can reach"
        title = f"a tiny batch cannot be fitted: {f'{100 * left:.0f} % of the loss is left at best' if left >= 0.01 else little}"
        grade = Severity.WARNING if trend.learning else Severity.ERROR
        own = arms[0].facts
        says = f"{str(own['class']).capitalize()}: {own['why']}." if "class" in own else MEANINGS[overfit.course(best)]
        if causes:
            says = f"It does fit {' and '.join(causes)}, one at a time: the cause lies there."
        fixes = tuple(Fix(cause, f"Train {cause}: on a copy this fits.", "", Reach.MODEL) for cause in causes)
        found = self._finding(title, grade, says, best, fixes, recording)
        yield replace(found, certainty=Certainty.PROVEN) if causes else found

    def _finding(
        self, title: str, severity: Severity, says: str, arm: Arm, fixes: tuple[Fix, ...], recording: Recording
    ) -> Finding:
        evidence = [Evidence("loss at best", overfit.number(arm, "best"), ">", overfit.number(arm, "floor"))]
        if arm.facts.get("kind") == "classes" and "accuracy" in arm.facts:
            evidence.append(Evidence("accuracy", 100 * overfit.number(arm, "accuracy"), "<", 100.0, "%"))
        says = f"{says} ({overfit.samples(arm)}, {len(overfit.ran(recording))} settings of {len(arm.losses)} steps.)"
        left = overfit.remaining(arm)
        return Finding(self.name, title, severity, says, Location(), tuple(evidence), fixes, share=left)
