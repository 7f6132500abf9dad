"""What an optimizer's step did to parameters that ask for a closer look: frozen ones, and those of half precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from netdoctor.capture import statistics
from netdoctor.capture.naming import ModuleNames
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.unfrozen import Unfrozen
from netdoctor.recording import Role, Site, Stat

HALF = frozenset({torch.float16, torch.bfloat16})


@dataclass(slots=True)
class _Kept:
    """A sample of a parameter from before the step. `wanted` marks the entries that have a gradient."""

    parameter: Tensor
    site: Site
    stride: int
    before: Tensor
    wanted: Tensor


class StepWatch:
    """Compares parameters before and after a step. Nothing is kept of parameters that are neither frozen nor half."""

    def __init__(self, recorder: Recorder, names: ModuleNames) -> None:
        self._recorder = recorder
        self._names = names
        self._kept: list[_Kept] = []
        self.unfrozen = Unfrozen(names)

    def before(self, parameters: list[Tensor]) -> None:
        """An optimizer is about to step on these."""
        self._kept = []
        self.unfrozen.look(parameters, self._recorder.step)
        if not any(parameter.requires_grad for parameter in parameters):
            return  # the loop sets gradients of its own, as evolution strategies do
        for parameter in parameters:
            gradient = parameter.grad
            special = not parameter.requires_grad or parameter.dtype in HALF
            if gradient is None or not special or gradient.layout is not torch.strided:
                continue
            if statistics.floats(parameter) is None or not (site := self._site(parameter)):
                continue
            stride = statistics.sample_stride(parameter)
            wanted = statistics.strided(gradient, stride) != 0
            self._kept.append(
                _Kept(
                    parameter, site, stride, statistics.strided(parameter, stride).to(torch.float32, copy=True), wanted
                )
            )

    def after(self) -> None:
        """It stepped. FROZEN_UPDATE: rms change of a frozen parameter. ROUNDED_AWAY: of the entries of a half-precision parameter
        that have a gradient, the share that came out as they were."""
        kept, self._kept = self._kept, []
        for item in kept:
            change = statistics.strided(item.parameter, item.stride).float() - item.before
            if not item.parameter.requires_grad:
                self._recorder.put(item.site, Stat.FROZEN_UPDATE, change.square().mean().sqrt())
            elif item.parameter.dtype in HALF:
                lost = ((change == 0) & item.wanted).sum() / item.wanted.sum()  # NaN where nothing has a gradient
                self._recorder.put(item.site, Stat.ROUNDED_AWAY, lost)

    def _site(self, parameter: Tensor) -> Site | None:
        key, owner = self._names.parameter_key(parameter), self._names.parameter_owner(parameter)
        if not key:
            return None
        module, layer = ("", "") if owner is None else (self._names.key_of(owner), type(owner).__name__)
        return Site(module, layer, Role.UPDATE, 0, key)
