"""Scores of a softmax that is one-hot from the start, brought to a standard deviation of 1."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netdoctor.checks.units.sharp_softmax import PASSED, candidates
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment, first_argument

Line = tuple[str, int]  # of the user's: file and number
_FAR = 5e3  # below the largest of its row: what masks add or fill in (-1e4, -1e9, -inf), of which nothing is left
_FILLED = -50.0  # or less, and the very lowest value more than once: a smaller number that is filled in


def hidden(scores: Tensor, dim: int = -1) -> Tensor:
    """Which scores a mask took away. Shape of the scores; boolean."""
    low = scores.min()
    filled = (scores == low) & (low <= _FILLED)
    far = ~torch.isfinite(scores) | (scores - scores.amax(dim, keepdim=True) <= -_FAR)
    return far | filled if int(filled.sum()) > 1 else far


@torch.no_grad()
def sharpness(scores: Tensor, dim: int = -1) -> tuple[float, float]:
    """How sharp a softmax over `dim` is: the standard deviation of its scores along a row (root mean square over rows), and
    the gradient it passes as a share of what it passes with even scores over the same keys, (1 - sum p²) / (1 - 1/n).

    Without masked keys, and without rows in which fewer than two are left; NaN where there are none else.
    """
    rows = scores.detach().double().movedim(dim, -1)
    kept = ~hidden(rows)
    several = kept.sum(-1) > 1
    rows, kept = rows[several], kept[several]
    if not len(rows):
        return math.nan, math.nan
    keys = kept.sum(-1)
    values = torch.where(kept, rows, torch.zeros_like(rows))
    apart = torch.where(kept, rows - values.sum(-1, keepdim=True) / keys[..., None], torch.zeros_like(rows))
    weights = torch.softmax(torch.where(kept, rows, torch.full_like(rows, -math.inf)), -1)
    passed = (1 - weights.square().sum(-1)) / (1 - 1 / keys)
    return float((apart.square().sum(-1) / keys).mean().sqrt()), float(passed.mean())


@dataclass(slots=True)
class Temper:
    """The change of one module's softmax on one line. Its first call decides whether, and by how much, scores are made smaller.

    `std` and `passed` are those of the first call, NaN before it; with `only_looks` nothing is changed.
    """

    line: Line
    only_looks: bool = False
    std: float = math.nan
    passed: float = math.nan
    called: bool = False

    @property
    def sharp(self) -> bool:
        """Whether too little of the gradient passed, for scores beyond a scale of 1."""
        return self.passed < PASSED and self.std > 1

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the softmax on scaled scores; what a mask took away stays as it is."""
        scores, dim = first_argument(args, kwargs), kwargs.get("dim", args[1] if len(args) > 1 else None)
        dim = -1 if dim is None else dim
        if not self.called:
            self.called = True
            self.std, self.passed = sharpness(scores, dim)
        if self.only_looks or not self.sharp:
            return func(*args, **kwargs)
        smaller = torch.where(hidden(scores.detach(), dim), scores, scores / self.std)
        return func(smaller, *args[1:], **{name: value for name, value in kwargs.items() if name != "input"})


def temper(bench: Bench, lines: Iterable[Line], only_looks: bool = False) -> list[Temper]:
    """Exchange every softmax on these lines, whichever module it stands in."""
    modules = [child for module in bench.sandbox.modules() for child in module.modules()]
    found = [(module, Temper(line, only_looks)) for module in (None, *modules) for line in dict.fromkeys(lines)]
    exchange_operations(bench, [Exchange(module, frozenset({"softmax"}), made, made.line) for module, made in found])
    return [made for _, made in found]


def scale_scores(case: Case) -> Treatment | None:
    """The scores of every softmax that is one-hot from the start, divided by their standard deviation in the first step."""
    lines = [(operation.file, operation.line) for operation in candidates(case.recording)]
    return Treatment(lambda bench: temper(bench, lines)) if lines else None


TREATMENTS: dict[str, Maker] = {"scale-scores": scale_scores}
