"""Nothing that goes wrong inside netdoctor may reach the user's training."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from netdoctor.recording import Fault

P = ParamSpec("P")
R = TypeVar("R")
STRIKES = 3  # a place that failed three times will go on failing: it is switched off


class Containment:
    """Runs our own code, keeps its exceptions, and switches off a place that keeps failing."""

    def __init__(self) -> None:
        self._faults: dict[str, Fault] = {}

    def run(self, where: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """`work(*args, **kwargs)`, or None when it fails or was switched off."""
        fault = self._faults.get(where)
        if fault is not None and fault.count >= STRIKES:
            return None
        try:
            return work(*args, **kwargs)
        except Exception as error:  # whatever it is, it is ours and must not become the user's
            self.note(where, error)
            return None

    def note(self, where: str, error: BaseException) -> None:
        """Record an exception that was caught elsewhere."""
        count = self._faults[where].count if where in self._faults else 0
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = "" if last is None else f" ({last.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{last.tb_lineno})"
        self._faults[where] = Fault(where, f"{type(error).__name__}: {error}"[:300] + place, count + 1)

    @property
    def faults(self) -> list[Fault]:
        """What was contained so far."""
        return list(self._faults.values())
