"""Averages of a model's weights that are evaluated with the BatchNorm statistics of before the training."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.modes import in_evaluation
from netdoctor.capture.source import user_line
from netdoctor.capture.statistics import is_shard
from netdoctor.capture.step import preserved_random_state
from netdoctor.capture.tree import tensors
from netdoctor.recording import SourceLine

STEPS = 20  # of training, before which statistics of the start are no fault
LOOKS = 64  # at each model, one in a step: an average may get its statistics before the last evaluation
LARGE = 50_000_000  # parameters: two copies of a larger model take a lot of room for one look
OWN, GIVEN = "stale_norms_own", "stale_norms_given"
Facts = dict[str, float | str | bool]
NEAR = 0.5  # of the trained weights: a copy that follows them; another random network of the same form is 1.4 away


class StaleNorms:
    """Looks at models that are evaluated and are not the one that trains. `found` is what stands in the end."""

    def __init__(self) -> None:
        self._trained: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._looked: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()
        self._of = 0  # the id of the model that `found` is about
        self.found: Facts = {}
        self.source: SourceLine | None = None

    def trains(self, module: nn.Module) -> None:
        """A model runs in training mode, with gradients."""
        if next(_norms(module), None) is not None:
            self._trained.add(module)

    def evaluates(self, module: nn.Module, step: int, arguments: Any) -> None:
        """A model is about to run in evaluation mode, with these (args, kwargs)."""
        if step < STEPS or module.training or module in self._trained or not self._trained:
            return
        looks, last = self._looked.get(module, (0, -1))
        if looks >= LOOKS or last == step:
            return
        self._looked[module] = looks + 1, step
        found = self._look(module, arguments, looks + 1)
        if found:
            self._of, self.found, self.source = id(module), found, user_line()
        elif self._of == id(module):
            self.found, self.source = {}, None

    def _look(self, module: nn.Module, arguments: Any, looks: int) -> Facts:
        norms = list(_norms(module))
        if not norms or not all(map(_as_built, norms)):
            return {}
        for trained in list(self._trained):
            others = list(_norms(trained))
            if _alike(norms, others) and not any(map(_as_built, others)) and _follows(module, trained):
                shift = max(map(_shift, others))
                known: Facts = {"stale_norms": float(len(norms)), "stale_norms_shift": shift}
                tried = {name: self.found[name] for name in (OWN, GIVEN) if name in self.found}
                again = looks & (looks - 1) == 0  # it comes nearer as the training settles: the 1st, 2nd, 4th, ... time
                return known | (_tried(module, trained, arguments) if again else tried)
        return {}


def _tried(module: nn.Module, trained: nn.Module, arguments: Any) -> Facts:
    """How far what a copy gives is from what the trained model gives in evaluation mode, relative: as it is, and with the trained
    model's statistics. Nothing where they cannot be run again, or are large."""
    if sum(p.numel() for p in trained.parameters()) > LARGE:
        return {}
    try:
        with preserved_random_state(), torch.no_grad():
            average, model = (in_evaluation(copy.deepcopy(one)) for one in (module, trained))
            wanted, own = (_output(one, arguments) for one in (model, average))
            for mine, theirs in zip(_norms(average), _norms(model), strict=True):
                mine.load_state_dict({k: v for k, v in theirs.state_dict().items() if "running" in k}, strict=False)
            given, scale = _output(average, arguments), wanted.norm()
            return {OWN: float((own - wanted).norm() / scale), GIVEN: float((given - wanted).norm() / scale)}
    except Exception:  # a model of the user's that cannot be copied, or does not give a tensor
        return {}


def _output(module: nn.Module, arguments: Any) -> Tensor:
    args, kwargs = arguments
    found: Tensor = next(tensors(module(*args, **kwargs))).float()
    return found


def _norms(module: nn.Module) -> Iterator[_BatchNorm]:
    for child in module.modules():
        if isinstance(child, _BatchNorm) and child.running_mean is not None and child.running_var is not None:
            yield child


def _as_built(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and not bool(mean.any()) and bool((variance == 1).all())


def _alike(norms: list[_BatchNorm], others: list[_BatchNorm]) -> bool:
    return [norm.num_features for norm in norms] == [norm.num_features for norm in others]


def _follows(module: nn.Module, trained: nn.Module) -> bool:
    """Whether the matrices of both are near each other."""
    for one, other in zip(module.parameters(), trained.parameters(), strict=False):
        if one.dim() < 2 or one.shape != other.shape or is_shard(one) or is_shard(other):
            continue
        apart = torch.linalg.vector_norm(one.detach() - other.detach())
        return bool(apart < NEAR * torch.linalg.vector_norm(other.detach()))
    return False


def _shift(norm: _BatchNorm) -> float:
    """How far the statistics of a norm are from those it was built with: the median over channels of the root mean square over
    values, in their standard deviations."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    return float(((deviation - 1).square() + norm.running_mean.double().square()).sqrt().div(deviation).median())
