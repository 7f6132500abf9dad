"""How well the classes are mixed: the entropy of each batch beside what random batches of its size would have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from netdoctor.checks.data.harm import entropies
from netdoctor.data import Array, TensorFacts
from netdoctor.recording import Recording

DRAWS = 64  # random batches per step; the mean of their entropies is then known to a few percent
SMALL = 16  # numbers per sample: more are an image or a sequence, which is no label
STAYS = 0.5  # of the batches are mostly of the class that the one before was of
FAR = 10  # steps apart, after which a shuffle buffer holds other samples
PAIRS, MOST = 5, 64  # of batches: for a mean, and as many as make it sure
FEWEST = 4  # samples in a batch: fewer have hardly any mixture


@dataclass(frozen=True, slots=True)
class Mixing:
    """Mean entropies in nats over `steps` batches, and `z`, by how many standard errors they differ.

    `majority` is the mean share of a batch's commonest class, `ordered` of neighbours that do not descend. `lasting` is by
    how much batches of steps that follow each other are more alike in their classes than distant ones, as a share of a batch.
    """

    entropy: float
    expected: float
    z: float
    majority: float
    ordered: float
    steps: int
    classes: int
    lasting: float = 0.0

    @property
    def share(self) -> float:
        """How much of the expected mixture there is; 1 when nothing is expected."""
        return self.entropy / self.expected if self.expected > 0 else 1.0


def mixing(target: TensorFacts) -> Mixing | None:
    """The mixture of a target of classes with one label per sample; None where there is too little to tell."""
    counts = target.classes
    if counts is None:
        return None
    kept = counts.sum(axis=1) >= FEWEST
    counts = counts[kept]
    if not len(counts):
        return None
    pooled = counts.sum(axis=0)
    found = entropies(counts)
    expected, deviation = _random(pooled / pooled.sum(), counts.sum(axis=1))
    error = float(np.sqrt((deviation**2).sum())) / len(counts)
    gap = float(expected.mean() - found.mean())
    ordered = np.ones(1) if target.ordered is None else target.ordered[kept]
    return Mixing(
        float(found.mean()),
        float(expected.mean()),
        gap / error if error > 0 else 0.0,
        float((counts.max(axis=1) / counts.sum(axis=1)).mean()),
        float(np.nanmean(ordered)) if np.isfinite(ordered).any() else 0.0,
        len(counts),
        int((pooled > 0).sum()),
        _lasting(counts, target.steps[kept]),
    )


def _lasting(counts: Array, steps: Array) -> float:
    """Mean overlap of the class shares of batches one step apart, less that of batches at least `FAR` steps apart."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    gaps = np.subtract.outer(steps, steps)
    near, far = (np.argwhere(which) for which in (gaps == 1, gaps >= FAR))
    if min(len(near), len(far)) < PAIRS:
        return 0.0
    far = far[:: -(-len(far) // MOST)]
    near_overlap, far_overlap = (np.minimum(shares[p[:, 0]], shares[p[:, 1]]).sum(axis=1).mean() for p in (near, far))
    return float(near_overlap - far_overlap)


def _random(shares: Array, sizes: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of the entropy of random batches, per batch size; the same at every call."""
    known: dict[int, tuple[float, float]] = {}
    for size in {int(size) for size in sizes}:
        draws = np.random.default_rng(size).multinomial(size, shares, DRAWS).astype(np.float64)
        values = entropies(draws)
        known[size] = float(np.mean(values)), float(np.std(values))
    pairs = np.array([known[int(size)] for size in sizes])
    return pairs[:, 0], pairs[:, 1]


def distinct(target: TensorFacts, recording: Recording) -> int:
    """How many of the watched batches differ. Where classes come one after the other, by the inputs too: the labels of all
    batches of one class are the same. Classes that take turns (real, fake, real, ...) do so by design."""
    labels = len(set(target.batches))
    if target.classes is None or len(target.classes) < 2:
        return labels
    largest = target.classes.argmax(axis=1)
    stays = float((largest[1:] == largest[:-1]).mean()) >= STAYS
    return max([labels, *(len(set(facts.batches)) for facts in recording.inputs if stays)])


def per_sample(facts: TensorFacts, recording: Recording) -> bool:
    """Whether a target has one entry per sample of the model's input."""
    return not recording.inputs or any(facts.shape[0] == given.shape[0] for given in recording.inputs)


def labelled(recording: Recording) -> bool:
    """Whether the loss compares with one small label per sample (a class, a few numbers), and with nothing else."""
    if len(recording.targets) != 1 or recording.facts.get("loss_family", "custom") == "custom":
        return False
    target = recording.targets[0]
    return per_sample(target, recording) and math.prod(target.shape[1:]) <= SMALL
