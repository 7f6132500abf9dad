"""The check `unshuffled-data`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data import mixing, order
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.data.symptoms import OF_ORDER
from netdoctor.data import TensorFacts
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class UnshuffledData(Check):
    """The samples come sorted: a batch holds far fewer classes than the data does.

    What it is: the loader takes the samples as they are stored, and they are stored class by class, or by value.
    Why it hurts: each update teaches one class and unteaches the others; the loss falls within a class and jumps at
    the next one, and batch statistics describe a single class.
    How it is decided: over at least 6 sampled steps the entropy of a batch's labels is compared with that of random
    batches of its size from all labels seen. Under 60 % of it, by 6 standard errors, with labels in order, mostly of one
    class or of those of the batch before, is a warning; under 30 %, or when training is hurt, an error. Of a regression:
    targets that ascend in every batch with less than half of the spread of all, or batches with less than 30 % of it
    while training is hurt. Also one batch again and again: while a loader hands out others of its shape that nobody
    uses; the first of a loader that is begun anew in each step; or one put together anew in each step, while the
    held-out loss gets far worse.
    When it stays silent: well mixed batches, shuffled or not; full-batch training; one class only; batches of under 4;
    GAN, RL, several optimizers; labels per token or pixel; regressions on sequences.
    Fix: `shuffle=True`, or a random permutation per epoch; the loop's own batch.
    Sources: LeCun et al., Efficient BackProp, 1998, section 4.2; Bottou, SGD Tricks, 2012, section 4; advice A13, A38.
    """

    name = "unshuffled-data"
    explains = OF_ORDER | {"label-input-mismatch"}

    steps: int = 6  # sampled steps: one or two odd batches are no habit
    poor: float = 0.6  # of the expected entropy: stratified or grouped sampling rarely goes below
    pure: float = 0.3  # of the expected entropy: most batches are of a single class
    expected: float = 0.3  # nats: with less there is hardly a second class to mix in
    errors: float = 6.0  # standard errors: chance is out of the question
    ordered: float = 0.99  # of neighbours: grouped samplers give groups in any order
    majority: float = 0.8  # of a batch: then order within it says nothing
    lasting: float = 0.2  # of a batch: drawn anew, batches that follow each other are as alike as any others
    spread: float = 0.5  # of a regression's targets, when they ascend: sorted ones lie within a narrow band
    narrow: float = 0.3  # of the same, in any order: sorted by an input

    def judge(self, recording: Recording) -> Iterator[Finding]:
        state = harm(recording).state
        if recording.facts.get("moving_target") or recording.facts.get("several_optimizers"):
            return
        if float(recording.facts.get("unused_inputs", 0)) >= self.steps:
            yield order.unused(recording, self.steps)
            return
        if (same := order.again(recording, self.steps)) is not None:
            yield same
            return
        for facts in recording.targets:
            if mixing.distinct(facts, recording) < self.steps or not mixing.per_sample(facts, recording):
                continue
            mixed = mixing.mixing(facts)
            if mixed is not None and self._poor(mixed):
                grave = mixed.share < self.pure or state is State.HURT
                yield order.classes(recording, facts, mixed, self.poor, Severity.ERROR if grave else Severity.WARNING)
                return
            if self._sorted(facts, state, recording):
                yield order.values(recording, facts, self.spread)
                return

    def _poor(self, mixed: mixing.Mixing) -> bool:
        enough = mixed.steps >= self.steps and mixed.expected >= self.expected
        in_order = mixed.ordered >= self.ordered or mixed.majority >= self.majority or mixed.lasting >= self.lasting
        return enough and mixed.share < self.poor and mixed.z > self.errors and in_order

    def _sorted(self, facts: TensorFacts, state: State, recording: Recording) -> bool:
        if facts.classes is not None or facts.ordered is None or facts.within is None or facts.shape[0] < 8:
            return False
        share = float(np.mean(facts.within)) / facts.std if facts.std > 0 else 1.0
        ascending = bool(np.nanmin(facts.ordered) >= self.ordered)
        plain = all(len(given.shape) == 2 for given in recording.inputs)
        return (ascending and share < self.spread) or (share < self.narrow and plain and state is State.HURT)
