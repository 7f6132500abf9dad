"""How many samples the last batch before an evaluation held, where BatchNorms remember little but that one."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.tree import tensors

HASTY = 0.5  # momentum of a BatchNorm: half of its running statistics are those of the last batch


class LastBatch:
    """Counts the samples of each training pass, in models with such a BatchNorm only.

    `size` is what the last pass before the last evaluation held, in a run without any that of its last pass; 0: unknown, or
    nobody needs it.
    """

    __slots__ = ("_evaluated", "_running", "wanted")

    def __init__(self) -> None:
        self.wanted = False
        self._running, self._evaluated = 0, 0

    def trains(self, module: nn.Module, arguments: Any) -> None:
        """A model runs in training mode, with gradients, in a step that is not like the ones before."""
        self.wanted = self.wanted or any(map(hasty, module.modules()))
        if self.wanted:
            self.passes(arguments)

    def passes(self, arguments: Any) -> None:
        """The same in any step, once that it is wanted: the samples lie along the first dimension of what a model is given."""
        first = next((tensor for tensor in tensors(arguments) if tensor.dim() > 0 and tensor.numel() > 1), None)
        self._running = 0 if first is None else int(first.shape[0])

    def evaluates(self) -> None:
        """A model is about to be evaluated."""
        self._evaluated = self._running or self._evaluated

    @property
    def size(self) -> int:
        """See above."""
        return self._evaluated or self._running


def hasty(module: nn.Module) -> bool:
    """Whether it is a BatchNorm whose running statistics are those of the last batch, by half or more."""
    if not isinstance(module, _BatchNorm) or not module.track_running_stats or module.running_mean is None:
        return False
    return module.momentum is not None and module.momentum >= HASTY
