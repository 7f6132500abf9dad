"""Parameters that were frozen when their optimizer was built, then set to train: they get gradients, and nobody moves them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from netdoctor.capture import statistics
from netdoctor.capture.naming import SEPARATOR, ModuleNames
from netdoctor.recording import Event

KIND = "unfrozen"
FRESH = (
    3  # measured steps with a new gradient and the same weights: an optimizer that is built later has stepped by then
)
_KEPT = 8  # sets of parameters that optimizers hold, whose complements are known


@dataclass(slots=True)
class _Seen:
    """A parameter that was frozen in a step of an optimizer that did not hold it; what it was when that was no more so."""

    ref: weakref.ref[Tensor]
    key: str
    step: int = -1
    fresh: int = 0
    gradient: tuple[int, int] = (0, 0)  # which tensor it was, and how often it was written
    weight: Tensor | None = None


class Unfrozen:
    """Follows the parameters of trained models that the optimizer does not hold, through the steps that are measured."""

    def __init__(self, names: ModuleNames) -> None:
        self._names = names
        self._seen: dict[int, _Seen] = {}
        self._loose: dict[frozenset[int], list[tuple[str, weakref.ref[Tensor]]]] = {}
        self._version = -1

    def look(self, parameters: list[Tensor], step: int) -> None:
        """An optimizer is about to step on these."""
        held = frozenset(map(id, parameters))
        for key in held.intersection(self._seen):
            del self._seen[key]
        for name, ref in self._others(held):
            parameter = ref()
            if parameter is None:
                continue
            if not parameter.requires_grad:
                self._seen[id(parameter)] = _Seen(ref, name)
            elif (seen := self._seen.get(id(parameter))) is not None and seen.ref() is parameter:
                self._follow(seen, parameter, step)

    def _follow(self, seen: _Seen, parameter: Tensor, step: int) -> None:
        gradient, weight = parameter.grad, statistics.strided(parameter, statistics.sample_stride(parameter))
        if seen.weight is not None and not bool((weight == seen.weight).all()):
            del self._seen[id(parameter)]  # somebody moves it
            return
        if gradient is None or (at := (id(gradient), gradient._version)) == seen.gradient:
            return
        seen.step = step if seen.weight is None else seen.step
        seen.weight = weight.clone() if seen.weight is None else seen.weight
        seen.fresh, seen.gradient = seen.fresh + 1, at

    def _others(self, held: frozenset[int]) -> list[tuple[str, weakref.ref[Tensor]]]:
        """The parameters of the models that an optimizer holds a part of, without that part."""
        if self._version != self._names.version or len(self._loose) > _KEPT:
            self._loose, self._version = {}, self._names.version
        if held not in self._loose:
            known = [(key, parameter) for key, parameter in self._names.parameters() if SEPARATOR in key]
            trained = {key.split(SEPARATOR)[0] for key, parameter in known if id(parameter) in held}
            rest = [(k, p) for k, p in known if id(p) not in held and k.split(SEPARATOR)[0] in trained]
            self._loose[held] = [(key, weakref.ref(parameter)) for key, parameter in rest]
        return self._loose[held]

    def events(self, display: dict[str, str]) -> Iterator[Event]:
        """The names of those that got a new gradient in several measured steps and stayed as they were, and since which step."""
        for seen in self._seen.values():
            if seen.fresh >= FRESH:
                yield Event(seen.step, KIND, display.get(seen.key, seen.key.rpartition(SEPARATOR)[2]))
