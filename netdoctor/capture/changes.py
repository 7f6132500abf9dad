"""When does a training become another: new modes, another loss, another optimizer, learning rates that jump? From there on it is
captured anew."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from netdoctor.capture.tape import Backward

JUMP = 2.0  # times: schedules move a learning rate by less from one step to the next, except where they mean to
STEADY = 24  # steps at one learning rate, after which any other one begins a schedule: as many as the first window has
LATER = 2.0  # times the step of the last window: an ordinary move of a schedule begins a new one only so far on
MOST = 24  # windows in all: a loop that changes more often has no late phase
PHASES = 8  # optimizers: a loop that makes them anew all the time, as meta-learning does, has no phases
_KINDS = 256  # of losses that are remembered

Kind = tuple[Any, frozenset[tuple[str, bool]]]


class Changes:
    """Compares each step with those before it. Reads numbers and modes only."""

    def __init__(self) -> None:
        self._kinds: set[Kind] = set()
        self._rates: dict[tuple[int, int], tuple[Any, int]] = {}  # → (rate, the step that it is so since)
        self._begun = 0  # how many windows did
        self._last = 0  # the step of the last one
        self.due = False  # a learning rate moved, and no window has begun since

    def kind(self, backward: Backward) -> Kind | None:
        """The kind of a loss that is new: made on another line, by other models or functions, or in another mode; else None."""
        made = frozenset((e.name, e.module is not None and e.module.training) for e in backward.entries)
        kind = backward.position, made
        return None if kind in self._kinds or len(self._kinds) >= _KINDS else kind

    def remember(self, kind: Kind) -> None:
        """A loss of this kind is among the captured ones."""
        self._kinds.add(kind)

    def rates(self, optimizer: Optimizer, index: int, step: int) -> bool:
        """Take note of an optimizer's learning rates; whether a move of theirs asks for a late window, now or still."""
        known = self._rates
        if known and (index, 0) not in known and step >= STEADY and index < PHASES:  # of what another optimizer holds
            self.due = True
        for number, group in enumerate(optimizer.param_groups[:4]):
            rate = group.get("lr")
            before, since = known.get((index, number), (None, step))
            if before is not None and rate == before:
                continue
            known[index, number] = rate, step
            if before is not None:
                self._moved(float(before), float(math.nan if rate is None else rate), step - since - 1, step)
        return self.due

    def _moved(self, before: float, rate: float, steady: int, step: int) -> None:
        ordinary = rate <= before / JUMP or steady >= STEADY
        if before > 0 and (rate >= JUMP * before or (ordinary and step >= LATER * self._last)):
            self.due = True

    def allows(self, step: int) -> bool:
        """Whether another late window may begin; it is counted then."""
        if self._begun >= MOST:
            return False
        self._begun += 1
        self._last, self.due = step, False
        return True
