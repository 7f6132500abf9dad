"""Reads what every layer gives, in every step: finds a NaN or Inf that is squashed before it reaches the loss or a gradient.

Off unless asked for (`watch(exact=True)`), since it costs one kernel for each layer. A layer is a module without children; its
output is summed up, as a sum cannot lose a NaN or Inf. A module that turns out to make infinities on purpose (a mask before a
softmax), or whose sum overflowed, is left alone from then on.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from netdoctor.capture.identity import ByIdentity
from netdoctor.capture.tape import Backward

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer

_SUMMED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # half sums overflow where nothing is wrong
_get_ident = threading.get_ident
FAULTS = 3  # of reading: then it is switched off


class LayerOutputs:
    """The outputs of the running step, so far: `bad` is the first layer that gave a NaN or Inf."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.bad: nn.Module | None = None
        self._there: list[tuple[nn.Module, Tensor]] = []  # sums that another device works out
        self._spared: ByIdentity[nn.Module, bool] = ByIdentity()
        self._faults = 0
        self._transforming = torch._C._functorch.peek_interpreter_stack

    def see(self, module: nn.Module, result: Any) -> None:
        """A module gave `result`. Flat, since it is asked for every layer in every step."""
        if module._modules or not isinstance(result, Tensor) or self._faults >= FAULTS:
            return
        try:
            if _get_ident() != self._observer.thread or self._transforming() is not None:
                return
            dtype = result.dtype
            if dtype is not torch.float32 and not dtype.is_floating_point:
                return
            if result.layout is torch.strided and not result.is_meta:
                self._read(
                    module, result.detach().sum() if dtype not in _SUMMED else result.detach().sum(dtype=_SUMMED[dtype])
                )
        except Exception as error:
            self._faults += 1
            self._observer.containment.note("layer output", error)

    def _read(self, module: nn.Module, total: Tensor) -> None:
        if total.is_cpu:
            if not math.isfinite(total.item()) and self.bad is None and module not in self._spared:
                self.bad = module
        else:
            self._there.append((module, total))

    def under_way(self) -> list[tuple[str, Tensor]]:
        """The sums of this step that another device works out, with the keys of their modules; they are handed over."""
        there, self._there = self._there, []
        return [(self._observer.names.key_of(module), total) for module, total in there]

    def found(self) -> bool:
        """Whether a layer of this step gave a NaN or Inf; waits for what another device works out."""
        there, self._there = self._there, []
        if there:
            values = torch.stack([total.float() for _, total in there]).tolist()
            bad = [m for (m, _), v in zip(there, values, strict=True) if not math.isfinite(v) and m not in self._spared]
            self.bad = next(iter(bad), None) if self.bad is None else self.bad
        return self.bad is not None

    def judge(self, backwards: list[Backward]) -> None:
        """A backward call is about to run whose loss is finite: find out where a layer's NaN or Inf was made."""
        observer = self._observer
        module = self.bad if self.found() else None
        if module is None:
            return
        try:
            if observer.origin is None and observer.find_origin is not None:
                origin = observer.ours("origin search", observer.find_origin, observer, backwards, "layer")
                if origin is None:
                    self._spared[module] = True
                else:
                    observer.origin = origin
                    observer.on_trip()
        finally:
            self.bad = None
