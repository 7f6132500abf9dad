"""Plain steps: those that follow the pattern of the loop, and are neither measured nor kept to be run again on a copy.

Nearly all steps of a long training are plain, so these methods are written flat. Each tells whether the call was the expected one;
when it was not, or when something is not finite, the caller goes the long way, which finds out what happened.
"""

from __future__ import annotations

import math
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.pattern import Call, Event, Pattern
from netdoctor.capture.recorder import SeriesRecorder
from netdoctor.capture.tape import Context

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer


class PlainSteps(Pattern):
    """The pattern of a loop, with the short way through a step."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer)
        self.on = False  # the running step is plain, so far
        self.series: dict[Event, SeriesRecorder] = {}  # of the losses, by the place of the backward call
        self._recorder = observer.recorder
        self._changes = observer.program.changes
        self._labels: dict[tuple[int, int], str] = {}

    def begin(self, plain: bool = False) -> None:
        """A step begins that is expected to be like the ones before; `plain`: and no more is wanted of it than that."""
        super().begin()
        self.on = plain

    def leave(self) -> None:
        """The running step is another than expected."""
        self.on = False
        super().leave()

    def zero(self, owner: Any) -> bool:
        """An optimizer or a model is about to clear its gradients."""
        event = self._events[self._cursor]
        if event[0] != "zero" or event[1] != id(owner):
            return False
        self._cursor += 1
        self._recorder.tick("zero_grad")
        return True

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        """An outermost module is about to run."""
        event = self._events[self._cursor]
        if event[0] != "unit" or event[1] != id(module) or event[2] is not module.training:
            return False
        if not torch.is_grad_enabled():
            return False
        self._cursor += 1
        call = Call(args, kwargs, Context(True, None, torch.default_generator.get_state(), self._cuda()), [])
        key = id(module)
        if key in self._calls:
            self._calls[key].append(call)
        else:
            self._calls[key] = [call]
        return True

    def backward(self, loss: Tensor, frame: FrameType) -> bool:
        """`loss.backward()` is about to run, called from `frame`."""
        event = self._events[self._cursor]
        if event[0] != "backward" or event[1] is not frame.f_code or event[2] != frame.f_lineno:
            return False
        series = self.series.get(event)
        value = loss.item()
        if series is None or not math.isfinite(value):
            return False
        self._cursor += 1
        self._built.append(value)
        series.add(self._recorder.step, value)
        self._recorder.tick("backward")
        return True

    def gradients(self, optimizer: Optimizer, index: int) -> bool:
        """An optimizer is about to step: whether that is what the pattern says, and every gradient is finite."""
        event = self._events[self._cursor]
        if event[0] != "step" or event[1] != id(optimizer):
            return False
        if self._changes.rates(optimizer, index, self._recorder.step):
            return False
        groups = optimizer.param_groups
        held = [gradient for group in groups for p in group["params"] if (gradient := p.grad) is not None]
        if held:
            try:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(held))).item()
            except RuntimeError:  # sparse ones, several devices or dtypes
                return False
            if not math.isfinite(norm):
                return False
            self._recorder.scalar(self._label("gradient norm", index, 0), self._recorder.step, norm)
        self._cursor += 1
        for number in range(min(4, len(groups))):
            rate = groups[number].get("lr", math.nan)
            self._recorder.scalar(self._label("lr", index, number), self._recorder.step, float(rate))
        return True

    @property
    def over(self) -> bool:
        """Whether all of the pattern's calls were made."""
        return bool(self._events[self._cursor][0] == "end")

    def _cuda(self) -> list[Tensor] | None:
        return torch.cuda.get_rng_state_all() if torch.cuda._initialized else None

    def _label(self, name: str, index: int, number: int) -> str:
        if name == "gradient norm":
            return name if index == 0 else f"{name} ({index})"
        known = self._labels.get((index, number))
        if known is None:
            known = self._labels[index, number] = name if index == number == 0 else f"{name} ({index}.{number})"
        return known
