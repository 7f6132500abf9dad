"""Random draws from what is trained (actions of a policy, sampled tokens), and where their own log-probability is taken."""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.tree import substitute, tensors
from netdoctor.graph import Draw

_MOST = 2**20  # numbers of one draw; what it is compared with is as large
_FOLLOWED = 4096  # tensors that hold draws; a rollout has a few for each of its actions
_ROOM = 2**24  # numbers that are kept for all of them
_DEEP = 24  # operations from a draw to its log-probability: torch's own take seven
_FEW = 4  # numbers that differ from what is expected by the same constant: fewer do so by chance
_NEAR = 1e-3  # float32, with the logarithm of a rounded probability
_VARIED = 0.01  # how much log-probabilities differ from one another at least, where a constant may be missing
# What lays numbers out anew: it does the same to their log-probabilities.
_LAID = """
stack cat concat concatenate __getitem__ index_select reshape view flatten unflatten squeeze unsqueeze transpose permute t
unbind chunk split narrow select clone contiguous swapaxes movedim moveaxis ravel T mT
"""
_LAYING = frozenset(_LAID.split())
# By these the content leaves torch, for Python's own code or another library, without an operation that says so.
_TAKEN = "__int__ __index__ __bool__ __deepcopy__ __reduce_ex__ data_ptr storage untyped_storage save"
_TAKING = frozenset(_TAKEN.split())
_CHECKING = os.path.join("torch", "distributions") + os.sep


@dataclass(slots=True)
class _Held:
    """A tensor that holds draws: the log-probability of each of its numbers, and from which draws they are."""

    of: weakref.ref[Tensor]
    logarithms: Tensor
    draws: frozenset[int]
    depth: int


class Draws:
    """Follows draws by identity from where they are made to an operation that gives their log-probability."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._found: dict[int, set[int]] = {}
        self._nearly: dict[int, int] = {}  # the last value that is a log-probability up to a constant, by its draw
        self._room = _ROOM

    def clear(self) -> None:
        """Forget all of it."""
        self._held.clear()
        self._found.clear()
        self._nearly.clear()
        self._room = _ROOM

    def seen(self) -> tuple[Draw, ...]:
        """The draws so far, in order, each with the values that are its log-probability."""
        nearly = {draw: {value} for draw, value in self._nearly.items()}
        found = {draw: values or nearly.get(draw, set()) for draw, values in self._found.items()}
        return tuple(Draw(draw, tuple(sorted(values))) for draw, values in sorted(found.items()))

    def drawn(self) -> Iterable[int]:
        """The values that the draws made."""
        return self._found

    def see(self, name: str, args: Any, kwargs: Any, made: Any, value_of: Callable[[Tensor], int | None]) -> None:
        """An operation ran; `name` as the caller spoke it. Only a density that has a gradient is looked at."""
        if isinstance(made, Tensor) and name in _DENSITIES:
            self._begin(name, args, kwargs, made, value_of(made))
            return
        given = [held for tensor in tensors((args, kwargs)) if (held := self._holding(tensor)) is not None]
        if not given or max(held.depth for held in given) >= _DEEP or len(self._held) >= _FOLLOWED:
            return
        draws = frozenset().union(*(held.draws for held in given))
        results = list(tensors(made))
        laid = self._laid(name, args, kwargs)
        if len(laid) != len(results):
            if len({held.logarithms.numel() for held in given}) > 1 or len({held.draws for held in given}) > 1:
                return  # several draws in one result, and none of the two says in which order
            laid = [given[0].logarithms] * len(results)
        depth = 1 + max(held.depth for held in given)
        for result, logarithms in zip(results, laid, strict=True):
            value, off = value_of(result), _differs(result, logarithms)
            if value is not None and off is not None:
                self._find(draws, value, exactly=off < _NEAR)
            if off is None or off >= _NEAR:
                self._hold(result, logarithms, draws, depth)

    def _find(self, draws: Iterable[int], value: int, exactly: bool) -> None:
        for draw in draws:
            if exactly:
                self._found[draw].add(value)
            else:
                self._nearly[draw] = value

    def _begin(self, name: str, args: Any, kwargs: Any, made: Tensor, value: int | None) -> None:
        if value is None or not 0 < made.numel() <= _MOST:
            return
        self._found[value] = set()
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        with torch.no_grad():
            logarithms = _DENSITIES[name](made, given)
        if logarithms is not None and bool((logarithms.abs() > 1e-3).any()):  # else nothing was left to chance
            self._hold(made, logarithms, frozenset({value}), 0)

    def _hold(self, tensor: Tensor, logarithms: Tensor, draws: frozenset[int], depth: int) -> None:
        self._room -= logarithms.numel()
        if self._room > 0:
            self._held[id(tensor)] = _Held(weakref.ref(tensor), logarithms, draws, depth)

    def _holding(self, tensor: Tensor) -> _Held | None:
        held = self._held.get(id(tensor))
        return held if held is not None and held.of() is tensor else None

    def _laid(self, name: str, args: Any, kwargs: Any) -> list[Tensor]:
        """The log-probabilities, laid out as an operation lays out what it is given; nothing where it does something else."""
        if not args or name not in _LAYING:
            return []
        given = list(tensors(args[0]))
        held = [self._holding(tensor) for tensor in given]
        if not given or any(h is None or h.logarithms.shape != t.shape for h, t in zip(held, given, strict=True)):
            return []
        instead = {id(tensor): h.logarithms for tensor, h in zip(given, held, strict=True) if h is not None}
        logarithms = substitute(args[0], lambda tensor: instead[id(tensor)])
        with torch.no_grad():
            try:
                return list(tensors(_applied(name, logarithms, args[1:], kwargs)))
            except (RuntimeError, TypeError, IndexError):  # what it asks for is of the draws' own kind of numbers
                return []


def _applied(name: str, first: Any, more: Any, kwargs: Any) -> Any:
    if name in ("T", "mT"):
        return getattr(first, name)
    return (getattr(torch.Tensor, name, None) or getattr(torch, name))(first, *more, **kwargs)


def takes(function: Any) -> bool:
    """Whether a silent function hands on the content of a tensor; called from our watch. A distribution of torch that looks whether
    its argument is valid does no more with it."""
    return getattr(function, "__name__", "") in _TAKING and _CHECKING not in sys._getframe(2).f_code.co_filename


def _differs(result: Tensor, logarithms: Tensor) -> float | None:
    """By which constant a result differs from the log-probability of the draws, or from its negative; None where it is neither."""
    if not result.requires_grad or not result.is_floating_point() or result.numel() != logarithms.numel():
        return None
    value, known = result.detach().reshape(-1).float(), logarithms.reshape(-1).float()
    offs = value - known, -value - known
    least = min(float(off.abs().max()) for off in offs)
    varied = len(known) >= _FEW and float(known.std()) > _VARIED
    same = varied and any(float(off.std()) < _NEAR for off in offs)
    return least if least < _NEAR or same else None


def _of_classes(made: Tensor, given: dict[str, Any]) -> Tensor | None:
    weights: Tensor = given["input"].float()
    return (weights.gather(-1, made) / weights.sum(-1, keepdim=True)).log()


def _of_coins(made: Tensor, given: dict[str, Any]) -> Tensor | None:
    if "1" in given or "p" in given:  # then the tensor is only a shape
        return None
    chance: Tensor = given["input"].float()
    return torch.where(made > 0.5, chance, 1 - chance).log()


def _of_normal(made: Tensor, given: dict[str, Any]) -> Tensor | None:
    mean = given["mean"] if "mean" in given else given["input"]
    spread = given["std"] if "std" in given else given.get("1", 1.0)
    std = torch.as_tensor(spread, dtype=torch.float32, device=made.device)
    density: Tensor = -(((made - mean) / std) ** 2) / 2 - std.log() - math.log(math.sqrt(2 * math.pi))
    return density


_ARGUMENTS = ("input", "1", "2")
_DENSITIES: dict[str, Callable[[Tensor, dict[str, Any]], Tensor | None]] = {
    "multinomial": _of_classes,
    "bernoulli": _of_coins,
    "normal": _of_normal,
}
