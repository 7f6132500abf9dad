"""The check `label-input-mismatch`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import Harm, State, harm
from netdoctor.checks.data.mixing import labelled
from netdoctor.checks.data.pairs import CODE, lost, torn
from netdoctor.checks.data.scale_trial import Says, location, verdict
from netdoctor.checks.data.symptoms import OF_LABELS
from netdoctor.checks.generalisation.curves import generalises
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording

_ARMS = ("pairing/true", "pairing/shuffled", "pairing/shuffled again")


@dataclass(frozen=True)
class LabelInputMismatch(Check):
    """The labels have nothing to do with the inputs: shuffled pairs are learned as easily as the true ones.

    What it is: inputs and targets lost their pairing on the way: only one of them was shuffled, sorted, filtered or
    shifted, or a join went wrong.
    Why it hurts: there is nothing to learn but by heart; the loss stays at that of a constant prediction.
    How it is decided: where samples come again among the captured batches with other labels, about as often as labels
    at random would be others, it is certain. Else by experiment, where the loss is not clearly under that of a
    constant prediction and a copy can fit a tiny batch: some captured batches are learned by heart with their true
    targets, and twice with the targets permuted over the samples. All arms must get 10 % under a constant prediction,
    and in their second half the mean loss of the true arm lie within 3 % of the shuffled ones' (up to 8 %, as far as
    those differ). It is a warning: a task of which nothing can be learned in a few hundred steps looks the same.
    When it stays silent: training works, or a held-out loss falls; true pairs are easier (the usual case); no arm gets
    anywhere; targets that are no labels (images, sequences), data out of scale; losses of several terms.
    Fix: look at some pairs by eye, right before they go into the model; index inputs and targets with one permutation.
    Sources: Zhang et al., Understanding Deep Learning Requires Rethinking Generalization, 2017 (random labels are
    learned by heart, only more slowly); advice A30, E4.
    """

    name = "label-input-mismatch"
    arms = frozenset((*_ARMS, "scaling/control", "labels/conflicts"))
    explains = OF_LABELS

    steps: int = 60  # some passes over the captured batches: fewer teach nothing by heart
    learned: float = 0.1  # of a constant prediction's loss: only what is learned can be easy or hard to learn
    same: float = 0.03  # of the same: true pairs of a small but real data set differ by 10 to 50 %
    spread: float = 0.05  # more, as far as the shuffled ones differ: two batches of 32 by up to 20 %, four by 5 %
    held_out: float = 0.2  # that a held-out loss fell by: of pairs that do not belong together nothing carries over
    scale: float = 20.0  # of inputs or targets: above it they are learned no better than noise (unnormalised-input)

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arms = [recording.arms.get(name) for name in _ARMS]
        ran = [arm for arm in arms if arm is not None and not arm.failure and len(arm.losses) >= self.steps]
        state = harm(recording)
        falls = generalises(recording, state.constant, self.held_out)
        suffers = state.state in {State.HURT, State.SLOW} and labelled(recording) and not falls
        if suffers and (apart := torn(recording)) is not None:
            yield lost(self.name, *apart, recording)
            return
        if not any(arms) or not suffers or self._scaled(recording, state):
            return
        if len(ran) < len(arms):
            failed = [arm.failure for arm in arms if arm is not None and arm.failure]
            yield Abstention(self.name, failed[0] if failed else f"fewer than {self.steps} steps could be run")
            return
        length = min(len(arm.losses) for arm in ran)  # where time ran out, one had more steps than another
        ran = [replace(arm, losses=arm.losses[:length]) for arm in ran]
        start = min(float(ran[0].losses[0]), state.constant)  # NaN leaves the first one
        true, *shuffled = (float(arm.losses[length // 2 :].mean()) for arm in ran)
        gap = float(np.mean(shuffled)) - true
        limit = self.same * start + min(self.spread * start, abs(shuffled[0] - shuffled[1]))
        if gap > limit:
            return
        if max(map(_end, ran)) > (1 - self.learned) * start:
            yield Abstention(self.name, "not even by heart were the captured batches learned in the steps tried")
        else:
            yield self._finding(ran, gap / start, limit / start, recording)

    def _scaled(self, recording: Recording, state: Harm) -> bool:
        """Whether data out of scale keeps true pairs from being learned any better than shuffled ones."""
        large = any(facts.rms > self.scale for facts in (*recording.inputs, *recording.targets) if not facts.integral)
        return large or any(verdict(recording, what, state)[0] is Says.CURED for what in ("input", "target"))

    def _finding(self, arms: list[Arm], gap: float, limit: float, recording: Recording) -> Finding:
        ends = ", ".join(f"{_end(arm):.3g} ({arm.name.partition('/')[2]})" for arm in arms)
        says = f"A copy learned the captured batches by heart in {len(arms[0].losses)} steps: loss {ends}. "
        says += "Pairs that belong together are easier: the pairing was lost, or the model mixes its inputs up."
        title = "the labels have nothing to do with the inputs: shuffled pairs are learned as easily as the true ones"
        evidence = (Evidence("mean loss saved by true pairs", 100 * gap, "≤", 100 * limit, "%"),)
        fix = Fix("pair-again", "Keep inputs and targets in one order; look at some pairs by eye.", CODE, Reach.RUN)
        at, sure = location(recording.targets[0]) if recording.targets else Location(step=0), Certainty.INFERRED
        return Finding(self.name, title, Severity.WARNING, says, at, evidence, (fix,), sure, 0, share=1.0)


def _end(arm: Arm) -> float:
    return float(np.median(arm.losses[-max(2, len(arm.losses) // 5) :]))
