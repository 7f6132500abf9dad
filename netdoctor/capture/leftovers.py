"""Where several optimizers take turns: does each step on gradients that were cleared since its last step?"""

from __future__ import annotations

from torch.optim import Optimizer

from netdoctor.capture.optimizers import Optimizers
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.statistics import local

_LOOKED_AT = 3  # parameters of an optimizer, the first ones that have a gradient


class Leftovers:
    """Counts "stale step N" and "clean step N" of the optimizer with number N, in steps that are measured."""

    def __init__(self, recorder: Recorder, optimizers: Optimizers) -> None:
        self._recorder, self._optimizers = recorder, optimizers
        # By id, seen in this training step since the optimizer stepped; no entry: no backward call was.
        self._cleared: dict[int, bool] = {}
        self._step = -1

    def before_backward(self) -> None:
        """A backward call is about to run, and finds each optimizer's gradients cleared or not."""
        if self._step != self._recorder.step:  # what an earlier step left says nothing of this one's calls
            self._step = self._recorder.step
            self._cleared.clear()
        if len(self._optimizers.alive) > 1:
            for optimizer in list(self._optimizers.alive):
                key = id(optimizer)
                self._cleared[key] = self._cleared.get(key, False) or not _holds(optimizer)

    def stepping(self, optimizer: Optimizer, number: int) -> None:
        """An optimizer is about to step."""
        cleared = self._cleared.pop(id(optimizer), None)
        if cleared is not None and self._recorder.step == self._step > 0:
            self._recorder.count(f"{'clean' if cleared else 'stale'} step {number}", self._recorder.step)


def _holds(optimizer: Optimizer) -> bool:
    """Whether gradients of earlier backward calls are still there."""
    held = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
    for _, gradient in zip(range(_LOOKED_AT), held, strict=False):
        if gradient.is_sparse or bool(local(gradient.detach()).any()):
            return True
    return False
