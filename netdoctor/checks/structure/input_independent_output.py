"""A model whose output does not depend on what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine

GIVEN, BLANKED = "inputs/given", "inputs/blanked"


@dataclass(frozen=True)
class InputIndependentOutput(Check):
    """The model's output is the same whatever it is given.

    What it is: a result that was kept from the first call, the wrong variable, zeros that were to be filled, an integer
    division, a signal that died on its way.
    Why it hurts: nothing can be learned but the average target.
    How it is decided: by experiment, where training is hurt: the captured steps are run twice on a copy, once with every
    sample's input replaced by the average one. Both give the same losses, step by step.
    When it stays silent: a loss that differs in any step, as it does wherever some of the input is read (a head that
    starts at zero reads it from its second step on); inputs that do not vary; training that learns; no experiments.
    Fix: follow the input through forward, from its first line.
    Sources: Karpathy, A Recipe for Training Neural Networks, 2019 (the input-independent baseline); torchtest.
    """

    name = "input-independent-output"
    arms = frozenset({GIVEN, BLANKED})
    explains = frozenset({"loss-not-decreasing", "cannot-overfit-tiny-batch", "label-input-mismatch", "ignored-input"})

    same: float = 1e-5  # of the loss: float32 resolves 1e-7, and sums differ in their last digits
    steps: int = 8  # a head of zeros, and what lies behind a zero-initialised branch, has begun to move by then

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        given, blanked = (recording.arms.get(name) for name in (GIVEN, BLANKED))
        if harm(recording).state not in {State.HURT, State.SLOW}:
            return
        if given is None or blanked is None or given.failure or blanked.failure:
            failed = [arm.failure for arm in (given, blanked) if arm is not None and arm.failure]
            yield Abstention(self.name, failed[0] if failed else "no experiment blanked the inputs")
            return
        gap = difference(given, blanked, self.steps)
        if gap <= self.same:
            yield self._finding(recording, gap, min(given.losses.size, blanked.losses.size))

    def _finding(self, recording: Recording, gap: float, steps: int) -> Finding:
        facts = recording.inputs[0] if recording.inputs else None
        at = SourceLine(facts.file, facts.line, facts.text) if facts is not None and facts.file else None
        return Finding(
            self.name,
            f"the output does not depend on the input: with averages in its place, {steps} steps give the same losses",
            Severity.ERROR,
            f"Whatever the model is given, it predicts the same. {harm(recording).words}",
            Location.at(at, step=0),
            (Evidence("largest difference between the losses", 100 * gap, "≤", 100 * self.same, "%"),),
            (Fix("use-the-input", "Follow the input through forward: where is it last used?", "", Reach.MODEL),),
            Certainty.PROVEN,
            first_step=0,
            share=1.0,
        )


def difference(given: Arm, blanked: Arm, fewest: int) -> float:
    """The largest difference between the losses of both arms, of the largest loss; NaN where they do not tell."""
    steps = min(given.losses.size, blanked.losses.size)
    one, other = given.losses[:steps], blanked.losses[:steps]
    if steps < fewest or not np.isfinite(one).all() or not np.isfinite(other).all():
        return float("nan")
    return float(np.max(np.abs(one - other)) / max(float(np.max(np.abs(one))), 1e-30))


def unread(recording: Recording) -> bool:
    """Whether the experiment showed that the losses are the same whatever the input."""
    given, blanked = (recording.arms.get(name) for name in (GIVEN, BLANKED))
    known = given is not None and blanked is not None and not given.failure and not blanked.failure
    limits = InputIndependentOutput
    return (
        known and given is not None and blanked is not None and difference(given, blanked, limits.steps) <= limits.same
    )
