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
FAULTS = 3  # of reading: then it is switched off


class LayerOutputs:
    """The outputs of the running step, so far: `bad` is the first layer that gave a NaN or Inf."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.bad: nn.Module | None = None
        self.there: list[tuple[str, Tensor]] = []  # sums that another device works out, by the keys of the modules
        self._spared: ByIdentity[nn.Module, bool] = ByIdentity()
        self._faults = 0
        self._transforming = torch._C._functorch.peek_interpreter_stack

    def see(self, module: nn.Module, result: Any) -> None:
        """A module gave `result`."""
        if module._modules or not isinstance(result, Tensor) or not result.is_floating_point():
            return
        try:
            if torch.is_grad_enabled() and self._readable(result):
                self._read(module, result.detach().sum(dtype=_SUMMED.get(result.dtype)))
        except Exception as error:
            self._faults += 1
            self._observer.containment.note("layer output", error)

    def _readable(self, result: Tensor) -> bool:
        if self._faults >= FAULTS or threading.get_ident() != self._observer.thread:
            return False
        return result.layout is torch.strided and not result.is_meta and self._transforming() is None

    def _read(self, module: nn.Module, total: Tensor) -> None:
        if not total.is_cpu:
            self.there.append((self._observer.names.key_of(module), total))
        elif not math.isfinite(total.item()) and self.bad is None and module not in self._spared:
            self.bad = module

    def judge(self, backwards: list[Backward]) -> None:
        """A backward call is about to run whose loss is finite: find out where a layer's NaN or Inf was made."""
        observer, module = self._observer, self.bad
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
