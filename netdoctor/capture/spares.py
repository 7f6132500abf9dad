"""Copies of small tensors that captured losses were made of: many loops fill one buffer of labels or inputs again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from netdoctor.capture.statistics import is_shard
from netdoctor.capture.tape import Backward, Constant

MOST_BYTES = 1 << 20  # of a tensor: some hundredths of a millisecond
ROOM = 16 << 20  # of all copies of an iteration


class Spares:
    """Takes copies when a captured loss is about to be differentiated. What is overwritten until the next iteration is over is
    replaced by its copy, in the captured calls themselves; other copies are let go of then."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[Constant, Tensor]] = {}
        self._before: dict[int, tuple[Constant, Tensor]] = {}
        self._left = ROOM

    def take(self, backward: Backward) -> None:
        """Copy what a loss was made of, as far as it is small and still what it was."""
        for entry in backward.entries:
            for item in entry.meanings():
                if isinstance(item, Constant) and id(item) not in self._now and self._may(item):
                    self._left -= item.nbytes()
                    self._now[id(item)] = item, item.tensor.detach().clone()

    def end_iteration(self) -> None:
        """The running iteration is over."""
        self.settle()
        self._before, self._now, self._left = self._now, {}, ROOM

    def settle(self) -> None:
        """Put the copies in the place of what was overwritten."""
        for spares in (self._before, self._now):
            for key in [key for key, (constant, _) in spares.items() if constant.overwritten]:
                constant, copied = spares.pop(key)
                constant.stand_in(copied)

    def release(self) -> None:
        """Let go of all copies."""
        self._now, self._before, self._left = {}, {}, ROOM

    def _may(self, item: Constant) -> bool:
        tensor = item.tensor
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided and not is_shard(tensor)
        if not plain or tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.is_inference():
            return False
        return item.nbytes() <= min(MOST_BYTES, self._left) and not item.overwritten
