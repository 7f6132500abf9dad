"""What a copy's own loss makes of the answers that it is given: measures of trials whose losses may fall either way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from netdoctor.capture.step import Copies, Iteration, Replay, TrainingStep
from netdoctor.capture.tape import Backward
from netdoctor.experiments.loss_terms import BINARY_LOSSES, LossWatch, Term, watched_terms
from netdoctor.experiments.treatments.treatment import Bench, Measure

HALF = 0.5  # of full probability: less is as good as no answer
_LOGARITHMS = frozenset({"log", "log_softmax", "logsigmoid"})
_LOGITS = "binary_cross_entropy_with_logits"


@dataclass(frozen=True, slots=True)
class Given:
    """The probabilities that a loss works with, and what they should be: both (samples, classes or labels)."""

    probabilities: Tensor
    target: Tensor
    classes: bool  # of which a softmax gives the probabilities, so that they add up to one

    def lack(self) -> Tensor:
        """What the probability lacks of each right class, or of each binary answer."""
        if self.classes:
            return 1 - (self.probabilities * self.target).sum(-1)
        return (self.probabilities - self.target).abs()

    def lack_of_perfect(self) -> Tensor:
        """What answers that are perfect lack once they are squashed again as the loss does it."""
        again = self.target.softmax(-1) if self.classes else self.target.sigmoid()
        return replace(self, probabilities=again).lack()


def squashed_twice(step: TrainingStep) -> Measure | None:
    """How far the loss's probabilities stay from right answers, where it squashes what is squashed already.

    Perfect answers, 0 and 1, lose there as well: 1 becomes 0.73 in a second sigmoid, or e/(e + classes - 1) in a second
    softmax. A copy that does better than these, on average, and gives right answers more than one half, is free of it.
    None where the captured losses compare something else.
    """
    found = list(_given(step.copies(), _first(step.iterations)))
    if not found or any(given.classes and bool((given.target.sum(-1) != 1).any()) for given in found):
        return None
    wall = _mean(given.lack_of_perfect() for given in found)
    quantity = f"probability that right answers lack in the loss (perfect ones, squashed twice: {100 * wall:.3g} %)"
    return Measure(quantity, lacking, 100 * min(wall, HALF), "%", second=True)


def lacking(bench: Bench) -> float:
    """What the probabilities that the loss works with lack, on average over all answers that it asks for, in percent."""
    return 100 * _mean(given.lack() for given in _given(bench.sandbox.copies, _first(bench.iterations)))


def several_labels(step: TrainingStep) -> Measure | None:
    """The labels that are missed, where the loss lets only one label of a sample be true.

    A label is given where the loss's own probability is above one half; samples with a single label are left out. Of `n`
    labels of a sample a softmax can give one at most: a copy that misses fewer than the other `n - 1` is free of it.
    """
    found = list(_given(step.copies(), _first(step.iterations)))
    counts = [target.sum(-1) for target in (_with_several(given) for given in found if given.classes)]
    labels = torch.cat(counts) if counts else torch.empty(0)
    if not labels.numel():
        return None
    best = 100 * float((labels - 1).sum() / labels.sum())
    quantity = (
        f"labels, of samples with several, that the loss's own probabilities miss (the best softmax: {best:.3g} %)"
    )
    return Measure(quantity, missed, best, "%", second=True)


def _with_several(given: Given) -> Tensor:
    return given.target[given.target.sum(1) > 1]


@torch.no_grad()
def missed(bench: Bench) -> float:
    """The percentage of true labels, of samples with several, whose probability in the loss is not above one half."""
    shares = []
    for given in _given(bench.sandbox.copies, _first(bench.iterations)):
        wanted = (given.target > HALF) & (given.target.sum(1, keepdim=True) > 1)
        shares.append((given.probabilities[wanted] <= HALF).double())
    return 100 * _mean(shares)


def lost_logarithms() -> Measure:
    """The log-probabilities of the captured batches that are no numbers, and end a training: -inf, or NaN thereafter."""
    return Measure("log-probabilities that are -inf or NaN after the same steps", lost, 0.0, "%", second=True)


def lost(bench: Bench) -> float:
    """The percentage of logarithms and log-probabilities, in forward passes over all batches, that are -inf or NaN."""
    bad = total = 0
    for backward in _first(bench.iterations):
        replay = Replay(bench.sandbox.copies)
        watch = LossWatch(replay)
        with watch:
            replay.loss(backward)
        for operation in (o for o in watch.operations if o.name in _LOGARITHMS):
            total += sum(made.numel() for made in operation.outputs)
            bad += sum(int((~made.isfinite()).sum()) for made in operation.outputs)
    return 100 * bad / total if total else math.nan


# --- the probabilities of a loss -------------------------------------------------------------------------------------


def _first(iterations: list[Iteration]) -> Iterator[Backward]:
    return (iteration.backwards[0] for iteration in iterations)


def _given(copies: Copies, backwards: Iterable[Backward]) -> Iterator[Given]:
    """Of every term of these losses that compares probabilities with targets."""
    for backward in backwards:
        _, terms = watched_terms(copies, backward)
        yield from filter(None, map(_of_term, terms))


@torch.no_grad()
def _of_term(term: Term) -> Given | None:
    if term.prediction is None or term.target is None:
        return None
    prediction, target = term.prediction.detach().double(), term.target.detach()
    if term.name in BINARY_LOSSES:
        given = prediction.sigmoid() if term.name == _LOGITS else prediction
        return Given(_rows(given), _rows(target.double()), False) if given.shape == target.shape else None
    if term.name not in ("cross_entropy", "nll_loss") or prediction.dim() < 2:
        return None
    scores = _rows(prediction)
    given = scores.exp() if term.name == "nll_loss" else scores.softmax(-1)
    if target.is_floating_point():
        return Given(given, _rows(target.double()), True) if target.shape == prediction.shape else None
    return _of_classes(given, target.reshape(-1))


def _rows(values: Tensor) -> Tensor:
    """(batch, classes, ...) as (samples, classes); a vector as one column."""
    return values.movedim(1, -1).flatten(0, -2) if values.dim() > 1 else values.reshape(-1, 1)


def _of_classes(given: Tensor, target: Tensor) -> Given | None:
    kept = (target >= 0) & (target < given.shape[1])
    if target.numel() != given.shape[0] or not bool(kept.any()):
        return None
    return Given(given[kept], F.one_hot(target[kept].long(), given.shape[1]).double(), True)


def _mean(values: Iterable[Tensor]) -> float:
    held = [value.reshape(-1) for value in values]
    return float(torch.cat(held).mean()) if held else math.nan
