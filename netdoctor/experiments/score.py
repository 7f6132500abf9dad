"""How well predictions fit their targets, whatever the weight or the reduction of the loss that compares them.

Measures are per target: cross-entropy in nats for classes, mean squared or absolute difference for regression.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.loss_terms import ABSOLUTE, BINARY_LOSSES, CLASSES, REGRESSION, Term, watched_terms

SMALL_LOSS = 0.05  # nats: every target is given 95 % probability in the geometric mean
SMALL_SHARE = 0.05  # of the loss at the start (pytest-torch asks for the same)
NEARLY = 0.2  # of the start, with enough targets right: as far as bounded logits (cosine similarities) can get
RESIDUAL = 0.01  # of the targets' variance: what regression may leave
_LOOKED = 8  # iterations that the loss of a constant prediction is taken from
TOKENS_RIGHT = 0.95  # with many targets per sample: the first tokens of texts cannot be told from what comes before


@dataclass(frozen=True, slots=True)
class Fit:
    """The fit of one term: its measure, the least it can be, that of the best constant, the share of right targets."""

    kind: str
    measure: float
    least: float
    constant: float
    right: float = math.nan
    needed: float = 1.0  # the share of right targets that counts as fitted
    absolute: bool = False

    def floor(self, start: float) -> float:
        """The measure under which the term counts as fitted, for a run that began at `start`."""
        if self.kind == CLASSES:
            return self.least + max(SMALL_LOSS, SMALL_SHARE * (start - self.least))
        return self.constant * (math.sqrt(RESIDUAL) if self.absolute else RESIDUAL)

    def reached(self, start: float) -> bool:
        """Whether it is at its floor, with enough of the targets right."""
        return self.measure <= self.floor(start) and (self.kind == REGRESSION or self.right >= self.needed)

    def settled(self, start: float) -> bool:
        """Whether it counts as fitted at the end of a run: at its floor, or with enough targets right and little loss."""
        nearly = self.least + NEARLY * (start - self.least)
        return self.reached(start) or (self.kind == CLASSES and self.right >= self.needed and self.measure <= nearly)


def fits(terms: Sequence[Term], samples: int) -> list[Fit]:
    """The fit of every term whose kind is known and whose numbers make sense, in order."""
    found = [_fit(term, samples) for term in terms if term.kind in (CLASSES, REGRESSION)]
    return [fit for fit in found if fit is not None]


@torch.no_grad()
def _fit(term: Term, samples: int) -> Fit | None:
    if term.prediction is None or term.target is None or term.prediction.numel() == 0 or term.target.numel() == 0:
        return None
    prediction, target = term.prediction.detach().double(), term.target.detach()
    if term.kind == REGRESSION:
        return _regression(term, prediction, target.double())
    if term.name in BINARY_LOSSES:
        return _binary(term, prediction, target.double(), samples)
    return _classes(term, prediction, target, samples)


def _regression(term: Term, prediction: Tensor, target: Tensor) -> Fit | None:
    if term.name == "binary_cross_entropy_with_logits":
        prediction = torch.sigmoid(prediction)
    absolute = term.name in ABSOLUTE
    difference = prediction - target  # broadcasts as the loss does, with the same consequences
    middle = target.median(0, keepdim=True).values if absolute and target.dim() else target.mean(0, keepdim=True)
    spread = target - middle if target.dim() else target
    if not bool(spread.any()):
        spread = target  # one value for all samples: its magnitude is the scale
    if not bool(spread.any()):
        return None  # all zeros: no scale to compare with
    return Fit(REGRESSION, _size(difference, absolute), 0.0, _size(spread, absolute), absolute=absolute)


def _size(values: Tensor, absolute: bool) -> float:
    return float(values.abs().mean() if absolute else values.square().mean())


def _binary(term: Term, prediction: Tensor, target: Tensor, samples: int) -> Fit | None:
    if prediction.shape != target.shape:
        return None
    logits = prediction if term.name.endswith("logits") else torch.logit(prediction, eps=1e-12)
    share = float(target.mean())
    constant = -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
    right = float(((logits > 0) == (target > 0.5)).double().mean())
    measure = float(F.binary_cross_entropy_with_logits(logits, target))
    return Fit(CLASSES, measure, 0.0, constant, right, TOKENS_RIGHT if target.numel() > samples else 1.0)


def _classes(term: Term, prediction: Tensor, target: Tensor, samples: int) -> Fit | None:
    attributes = term.attributes or {}
    axis = 1 if prediction.dim() > 1 else 0
    classes = prediction.shape[axis]
    scores = prediction.movedim(axis, -1).reshape(-1, classes)
    logs = scores if term.name == "nll_loss" else torch.log_softmax(scores, -1)
    if target.is_floating_point():
        wanted = target.double().movedim(axis, -1).reshape(-1, classes)
    else:
        flat = target.reshape(-1)
        kept = (flat != attributes.get("ignore_index", -100)) & (flat >= 0) & (flat < classes)
        if flat.numel() != logs.shape[0] or not bool(kept.any()):
            return None
        logs, wanted = logs[kept], F.one_hot(flat[kept], classes).double()
    if wanted.shape != logs.shape:
        return None
    right = float((logs.argmax(-1) == wanted.argmax(-1)).double().mean())
    smoothing = float(attributes.get("label_smoothing", 0.0))
    wanted = (1 - smoothing) * wanted + smoothing / classes
    measure = float(-torch.where(wanted > 0, wanted * logs, 0.0).sum(-1).mean())  # an impossible class may have -inf
    needed = TOKENS_RIGHT if wanted.shape[0] > samples else 1.0
    return Fit(CLASSES, measure, _entropy(wanted), _entropy(wanted.mean(0, keepdim=True)), right, needed)


def _entropy(shares: Tensor) -> float:
    return float(torch.special.entr(shares).sum(-1).mean())


def constant_loss(step: TrainingStep) -> float | None:
    """The median over captured iterations of the loss of the best constant prediction, in the unit of the loss."""
    copies, values = step.copies(), []
    for iteration in step.iterations[:_LOOKED]:
        total = 0.0
        for backward in iteration.backwards:
            value, terms = watched_terms(copies, backward)
            found = fits(terms, 1)
            measure = sum(fit.measure for fit in found)
            if not terms or len(found) != len(terms) or any(t.kind not in (CLASSES, REGRESSION) for t in terms):
                return None
            if not 0 < measure < math.inf:
                return None
            total += value / measure * sum(fit.constant for fit in found)
        values.append(total)
    found_one = statistics.median(values) if values else math.nan
    return found_one if 0 < found_one < math.inf else None
