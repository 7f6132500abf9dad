"""Gradients that are cleared after the backward call that made them and before their optimizer steps on them."""

from __future__ import annotations

import linecache
import re
import weakref

from torch import nn
from torch.optim import Optimizer

from netdoctor.capture.optimizers import Optimizers, parameters_of
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.source import user_position
from netdoctor.capture.statistics import local
from netdoctor.recording import SourceLine

_LOOP = re.compile(r"\s*for\s+(.+?)\s+in\s.*:\s*(?:#.*)?$")
_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")  # of variables, not of what is behind a dot


class Cleared:
    """Counts "zeroed step N" of the optimizer with number N: the gradients that it was to step on were cleared before.

    Each optimizer is asked for itself. Where several take turns, what one's loss leaves at another's weights is thrown away on
    purpose; but an optimizer that steps with no backward call since its gradients were cleared has nothing to step on.
    """

    def __init__(self, recorder: Recorder, optimizers: Optimizers) -> None:
        self._recorder, self._optimizers = recorder, optimizers
        self._stepped: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # since the last backward call
        self._lost: weakref.WeakKeyDictionary[Optimizer, SourceLine | None] = weakref.WeakKeyDictionary()
        self._waiting = False  # a backward call was seen

    def computed(self) -> None:
        """A backward call is done: every optimizer may have something new to step on."""
        self._waiting = True
        self._stepped.clear()
        self._lost.clear()

    def clearing(self, owner: Optimizer | nn.Module, source: SourceLine | None) -> None:
        """An optimizer or a module is about to clear its gradients, in this line."""
        open_ = [o for o in self._optimizers.alive if o not in self._stepped] if self._waiting else ()
        if not open_:
            return
        held = owner.parameters() if isinstance(owner, nn.Module) else parameters_of(owner)
        cleared = {id(p) for p in held if p.grad is not None}
        for optimizer in open_:
            if any(id(p) in cleared for p in parameters_of(optimizer)):
                self._lost[optimizer] = source

    def stepping(self, optimizer: Optimizer, number: int) -> bool:
        """An optimizer is about to step: whether it has nothing left to step on. Gradients that were set by hand since, as those of
        single samples or of tasks in conflict, are something."""
        lost = optimizer in self._lost and not any(
            p.grad.is_sparse or bool(local(p.grad.detach()).any())
            for p in parameters_of(optimizer)
            if p.grad is not None
        )
        if lost:
            kind = f"zeroed step {number}"
            line = _step_line() if self._recorder.keeps(kind) else ""
            self._recorder.count(kind, self._recorder.step, line, source=self._lost[optimizer])
        self._lost.pop(optimizer, None)
        self._stepped.add(optimizer)
        return lost


def _step_line() -> str:
    """The line that steps; where it is in a loop over optimizers, under the head of that loop."""
    file, number = user_position()
    line = linecache.getline(file, number) if file else ""
    for before in range(number - 1, 0, -1):
        above = linecache.getline(file, before)
        if above.strip() and _indent(above) < _indent(line):
            head = _LOOP.match(above)
            looped = head is not None and set(_NAME.findall(head[1])) & set(_NAME.findall(line))
            return f"{above.strip()}\n    {line.strip()}" if looped else line.strip()
    return line.strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
