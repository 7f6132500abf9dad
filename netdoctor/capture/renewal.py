"""Begins the late window of captured steps at the very step in which the training becomes another, or goes bad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from netdoctor.capture.tape import Backward

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer

GRAPH_WITHIN = 3  # steps: the first one may end in the middle of a pass, where another optimizer takes over


class Renewal:
    """Asks `Changes` what is new, and `Program` to capture from here on; weights of the running step are untouched so far."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def loss(self, captured: Backward, finite: bool, before: int) -> None:
        """A loss is about to be derived; `before`: backward calls of this step before it. One of another kind begins a window."""
        program = self._observer.program
        kind = program.changes.kind(captured)
        whole = len(program.current.backwards) == before + 1  # the step was watched from its beginning
        if whole and (kind is not None or not finite) and self.begin(program.current.backwards):
            self._observer.renewed = GRAPH_WITHIN if kind is not None and finite else 0
        if kind is not None and program.capturing:
            program.changes.remember(kind)

    def rates(self, optimizer: Optimizer, index: int) -> bool:
        """An optimizer is about to take the first step of several; whether a move of its learning rate began a window."""
        observer, light = self._observer, self._observer.light
        due = observer.program.changes.rates(optimizer, index, observer.step)
        if not due or not observer.program.may_renew:
            return False
        return self.begin(observer.program.current.backwards if light is None else light.backwards())

    def begin(self, backwards: list[Backward]) -> bool:
        """Capture from the running step on, whose backward calls these are; whether that is so now."""
        observer, program = self._observer, self._observer.program
        if not program.may_renew or not program.changes.allows(observer.step):
            return False
        observer.pattern.on = False  # the rest of the step is kept, too
        return program.renew(observer.step, backwards)
