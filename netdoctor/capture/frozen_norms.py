"""BatchNorms whose weights were frozen on the way: what their running statistics were then, and how far they moved since."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.identity import ByIdentity
from netdoctor.capture.naming import SEPARATOR, ModuleNames
from netdoctor.capture.patching import Patches
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.statistics import is_shard
from netdoctor.recording import Event

KIND = "frozen norm"  # of the events


@dataclass(slots=True)
class Frozen:
    """A BatchNorm as it was when it was first seen frozen, after it had trained in this run."""

    step: int
    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor | None
    moving: bool = False  # it was in training mode when an optimizer stepped

    def stays(self, norm: _BatchNorm) -> bool:
        """Whether its weights are what they were: else the script moves them itself, as it does with averages of weights."""
        same = torch.equal(norm.weight.detach(), self.weight)
        return same and (self.bias is None or torch.equal(norm.bias.detach(), self.bias))

    def drift(self, norm: _BatchNorm) -> float:
        """By how much what the norm gives in evaluation mode has changed for values that have the mean and variance of then:
        root mean square over values, in their standard deviations, the median over channels."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        before, now = ((v.double() + norm.eps).sqrt() for v in (self.variance, norm.running_var))
        shift = (norm.running_mean.double() - self.mean.double()) / now
        return float(((before / now - 1).square() + shift.square()).sqrt().median())


class FrozenNorms:
    """Watches the BatchNorms of all models that are known: a look costs a few attributes of each, and copies what is new.

    `look` is called wherever a part of a run may begin: modes are switched, an optimizer is made, a module is frozen; and
    before each optimizer step that is not like the one before.
    """

    def __init__(self, recorder: Recorder, names: ModuleNames) -> None:
        self._recorder = recorder
        self._names = names
        self._version = -1
        self._norms: list[weakref.ref[_BatchNorm]] = []
        self._trained: ByIdentity[_BatchNorm, bool] = ByIdentity()
        self._frozen: ByIdentity[_BatchNorm, Frozen] = ByIdentity()

    def look(self, stepping: bool = False) -> None:
        """See which are frozen by now; `stepping`: an optimizer is about to step, and modes are those of its batch."""
        for norm in self._known():
            if norm.weight.requires_grad:
                self._frozen.pop(norm)
                if stepping:
                    self._trained[norm] = True
                continue
            frozen = self._frozen.get(norm)
            if frozen is None and norm in self._trained:
                frozen = self._frozen[norm] = self._kept(norm)
            if frozen is not None and stepping and norm.training:
                frozen.moving = True

    def moved(self) -> Iterator[tuple[_BatchNorm, Frozen]]:
        """Those that are still frozen, were in training mode, and whose weights nobody moved."""
        for norm in self._known():
            frozen = self._frozen.get(norm)
            if frozen is not None and frozen.moving and not norm.weight.requires_grad and frozen.stays(norm):
                yield norm, frozen

    def kept(self) -> list[tuple[nn.Module, Frozen]]:
        """The same, for experiments."""
        return list(self.moved())

    def events(self, display: dict[str, str]) -> Iterator[Event]:
        """Since when each of them is frozen, its path, and how far its statistics moved (`Frozen.drift`)."""
        for norm, frozen in self.moved():
            key = self._names.key_of(norm)
            path = display.get(key, key.rpartition(SEPARATOR)[2])
            yield Event(frozen.step, KIND, path, frozen.drift(norm))

    def install(self, patches: Patches, safely: Callable[[str, Any], Any]) -> None:
        """Have `Module.requires_grad_` look after each call; `safely` contains our own work."""
        look = safely("frozen norms", self.look)

        def make(original: Any) -> Any:
            @functools.wraps(original)
            def requires_grad_(module: nn.Module, requires_grad: bool = True) -> Any:
                result = original(module, requires_grad)
                look()
                return result

            return requires_grad_

        patches.wrap(nn.Module, "requires_grad_", make)

    def release(self) -> None:
        """Let go of everything."""
        self._norms, self._version = [], -1
        self._frozen, self._trained = ByIdentity(), ByIdentity()

    def _kept(self, norm: _BatchNorm) -> Frozen:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance, weight = (t.detach().clone() for t in (norm.running_mean, norm.running_var, norm.weight))
        bias = None if norm.bias is None else norm.bias.detach().clone()
        return Frozen(self._recorder.step, mean, variance, weight, bias)

    def _known(self) -> Iterator[_BatchNorm]:
        if self._version != self._names.version:
            self._version = self._names.version
            roots = (root.module() for root in self._names.roots)
            found = {id(m): m for root in roots if root is not None for m in root.modules() if _has_statistics(m)}
            self._norms = [weakref.ref(norm) for norm in found.values() if isinstance(norm, _BatchNorm)]
        for ref in self._norms:
            norm = ref()
            if norm is not None and norm.weight is not None and norm.running_mean is not None:
                yield norm


def _state(norm: _BatchNorm) -> tuple[Tensor | None, ...]:
    return norm.running_mean, norm.running_var, norm.weight, norm.bias


def _has_statistics(module: nn.Module) -> bool:
    """Batch, not instance, normalisation, with running statistics and weights that can be read here."""
    if not isinstance(module, _BatchNorm) or not module.track_running_stats or module.weight is None:
        return False
    return all(t is None or not (t.is_meta or is_shard(t)) for t in _state(module))
