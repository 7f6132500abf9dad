"""The check `conflicting-labels`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.data.pairs import torn
from netdoctor.checks.data.scale_trial import location
from netdoctor.checks.data.unlearned import unlearned
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

SYMPTOMS = """
loss-not-decreasing cannot-overfit-tiny-batch label-input-mismatch overfitting unstable-loss underfitting
learning-rate-too-low learning-rate-too-high noisy-gradients dead-relu
"""


@dataclass(frozen=True)
class ConflictingLabels(Check):
    """The same input comes with different labels.

    What it is: duplicates with other labels, an index that is off for inputs or labels only, several annotators.
    Why it hurts: no model can give two answers to one question: the loss keeps a floor that no training gets below,
    and what is learned by heart in one step is unlearned in the next.
    How it is decided: by looking at the captured batches (at most 24): samples that have another label than most of those
    with the very same input. Any model must get these wrong. From 5 % of all samples on, or 1 % where training does not
    work or is slow, a warning; an error from 15 % on where it is so; else advice. Of regressions only contradictions
    within one batch count, for targets may be drawn anew.
    Where most samples are right, a copy of the trained model goes on with those of the captured batches alone: a few that stay
    wrong while 99 % of the others are learned by heart contradict others that are nearly the same. Advice.
    When it stays silent: inputs of fewer than 3 numbers, or with few different rows of few values (states, codes),
    which come again by themselves; models that are given more than the sample (states, graphs); moving
    targets; labels that change from epoch to epoch (label-input-mismatch).
    Fix: look at the pairs listed; clean them, or give all of them the same soft label.
    Sources: Northcutt et al., Confident Learning, 2021; advice E4.
    """

    name = "conflicting-labels"
    arms = frozenset({"labels/conflicts", "labels/unfitted"})
    explains = frozenset(SYMPTOMS.split())

    grave: float = 0.15  # of the samples: one in seven cannot be right
    much: float = 0.05  # of the samples: survey data has a few percent by nature
    some: float = 0.01  # of the samples, where training suffers
    least: int = 4  # samples: fewer are an accident
    rest: float = 0.99  # of the other samples: where more are not learned, the model may be too small

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        found = list(self._same_input(recording))
        yield from found or unlearned(self.name, self.rest, self.least, recording)

    def _same_input(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get("labels/conflicts")
        if arm is None or recording.facts.get("moving_target") or recording.facts.get("several_optimizers"):
            return
        if torn(recording) is not None and harm(recording).state in {State.HURT, State.SLOW}:
            return  # label-input-mismatch
        if arm.failure:
            yield Abstention(self.name, arm.failure)
            return
        classes = arm.facts.get("kind") == "classes"
        number = float(arm.facts.get("conflicting" if classes else "within", 0.0))
        total = float(arm.facts.get("seen", 0.0))
        share = number / max(1.0, total)
        if number < self.least or arm.facts.get("natural"):
            return
        suffers = harm(recording).state in {State.HURT, State.SLOW}
        warned = share >= self.much or (suffers and share >= self.some)
        severity = Severity.ERROR if suffers and share >= self.grave else Severity.WARNING
        limit = 100 * (self.some if suffers else self.much)
        samples = tuple(int(index) for index in str(arm.facts.get("samples", "")).split(",") if index)
        at = location(recording.targets[0]) if recording.targets else Location(step=0)
        where = Location(at.module, at.operation, at.file, at.line, at.text, 0, samples)
        named = f" In the first batch: samples {', '.join(map(str, samples[:8]))}." if samples else ""
        yield Finding(
            self.name,
            f"the same input comes with different labels: {100 * share:.2g} % of the samples cannot be right",
            severity if warned else Severity.ADVICE,
            f"{number:.0f} of {total:.0f} samples seen have another label than most with the same input.{named}",
            where,
            (Evidence("samples with another label than most of the same input", 100 * share, "≥", limit, "%"),),
            (Fix("clean-labels", "Look at these samples; keep one label per input.", "", Reach.RUN),),
            Certainty.MEASURED,
            0,
            share=share,
        )
