"""The check `unshuffled-data`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.data.mixing import Mixing, mixing
from netdoctor.checks.data.scale_trial import location
from netdoctor.data import TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Recording

CODE = "loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)\n# or, by hand: order = torch.randperm(len(X))"
CONSEQUENCES = """
loss-not-decreasing loss-diverging unstable-loss learning-rate-too-high learning-rate-too-low noisy-gradients dead-relu
constant-layer saturated-activation input-independent-output exploding-gradients batchnorm-drift train-eval-shift
overfitting underfitting class-imbalance initial-loss cannot-overfit-tiny-batch
"""


@dataclass(frozen=True)
class UnshuffledData(Check):
    """The samples come sorted: a batch holds far fewer classes than the data does.

    What it is: the loader takes the samples as they are stored, and they are stored class by class, or by target.
    Why it hurts: each update teaches one class and unteaches the others; the loss falls within a class and jumps at
    the next one, and batch statistics describe a single class.
    How it is decided: over at least 6 sampled steps the entropy of the labels in a batch is compared with that of random
    batches of the same size from all labels seen. Under 60 % of it, by 6 standard errors, and with labels that are in
    order or mostly of one class, is a warning; under 30 %, or when training is hurt, an error. Of a regression: targets
    in ascending order in every batch, with less than half of the spread that all of them have: a warning.
    When it stays silent: well mixed batches, shuffled or not; the same batch again and again (full-batch training,
    overfitting one batch on purpose); one class only; batches of under 4; GAN, RL, several optimizers; labels per token
    or pixel.
    Fix: `shuffle=True`, or a random permutation per epoch.
    Sources: LeCun et al., Efficient BackProp, 1998, section 4.2; Bottou, SGD Tricks, 2012, section 4; advice A13, A38.
    """

    name = "unshuffled-data"
    explains = frozenset(CONSEQUENCES.split())

    steps: int = 6  # sampled steps: one or two odd batches are no habit
    poor: float = 0.6  # of the expected entropy: stratified or grouped sampling rarely goes below
    pure: float = 0.3  # of the expected entropy: most batches are of a single class
    expected: float = 0.3  # nats: with less there is hardly a second class to mix in
    errors: float = 6.0  # standard errors: chance is out of the question
    ordered: float = 0.99  # of neighbours: grouped samplers give groups in any order
    majority: float = 0.8  # of a batch: then order within it says nothing
    spread: float = 0.5  # of a regression's targets: sorted ones lie within a narrow band

    def judge(self, recording: Recording) -> Iterator[Finding]:
        state = harm(recording).state
        if recording.facts.get("moving_target") or recording.facts.get("several_optimizers"):
            return
        for facts in recording.targets:
            if len(set(facts.batches)) < self.steps or not _per_sample(facts, recording):
                continue
            mixed = mixing(facts)
            if mixed is not None and self._poor(mixed):
                yield self._classes(facts, mixed, state)
                return
            if facts.classes is None and not facts.integral and self._sorted(facts):
                yield self._values(facts)
                return

    def _poor(self, mixed: Mixing) -> bool:
        enough = mixed.steps >= self.steps and mixed.expected >= self.expected
        sorted_ = mixed.ordered >= self.ordered or mixed.majority >= self.majority
        return enough and mixed.share < self.poor and mixed.z > self.errors and sorted_

    def _classes(self, facts: TensorFacts, mixed: Mixing, state: State) -> Finding:
        grave = mixed.share < self.pure or state is State.HURT
        says = f"In a batch {100 * mixed.majority:.0f} % of the samples are of one class on average. "
        says += "Each update teaches that class and unteaches the others."
        title = f"the data is not shuffled: {np.exp(mixed.entropy):.2g} of {mixed.classes} classes in a batch"
        evidence = Evidence("entropy of the labels in a batch", mixed.entropy, "<", self.poor * mixed.expected, "nats")
        return self._finding(facts, f"{title} (mean)", Severity.ERROR if grave else Severity.WARNING, says, evidence)

    def _sorted(self, facts: TensorFacts) -> bool:
        if facts.ordered is None or facts.within is None or len(facts.ordered) < self.steps or facts.shape[0] < 8:
            return False
        narrow = float(np.mean(facts.within)) < self.spread * facts.std
        return narrow and bool(np.nanmin(facts.ordered) >= self.ordered)

    def _values(self, facts: TensorFacts) -> Finding:
        within = 0.0 if facts.within is None else float(np.mean(facts.within))
        says = "The targets ascend within each batch, so each update fits one part of their range and spoils the others."
        title = f"the data is not shuffled: targets come sorted, {100 * within / facts.std:.0f} % of their spread per batch"
        evidence = Evidence("standard deviation of the target in a batch", within, "<", self.spread * facts.std)
        return self._finding(facts, title, Severity.WARNING, says, evidence)

    def _finding(self, facts: TensorFacts, title: str, grade: Severity, says: str, evidence: Evidence) -> Finding:
        fix = Fix("shuffle", "Shuffle the training data anew in each epoch.", CODE, Reach.RUN)
        return Finding(self.name, title, grade, says, location(facts), (evidence,), (fix,), first_step=0, share=1.0)


def _per_sample(facts: TensorFacts, recording: Recording) -> bool:
    """Whether a target has one entry per sample of the model's input."""
    return not recording.inputs or any(facts.shape[0] == given.shape[0] for given in recording.inputs)
