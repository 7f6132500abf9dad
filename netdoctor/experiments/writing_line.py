"""Which of the user's lines writes to something: the lines that run are followed, and after each it is looked at."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor

from netdoctor.capture.source import is_user_file

_LEFT = r"(?P<name>[A-Za-z_]\w*)"
_WRITES = (  # what a line writes to: `x -= ...`, `x[...] = ...`, `x.mul_(...)`, `f(..., out=x)`, `f(x, ..., inplace)`
    re.compile(rf"^{_LEFT}\s*(?:\[.*\])?\s*(?:[-+*/|&^%@]|//|\*\*|<<|>>)?=(?!=)"),
    re.compile(rf"\b{_LEFT}(?:\[[^\]]*\])?\.(?:\w+_|sort|fill|put|itemset|partition)\("),
    re.compile(rf"\bout\s*=\s*{_LEFT}"),
    re.compile(rf"\b(?:shuffle|copyto|put|place|putmask|fill_diagonal)\(\s*{_LEFT}"),
)


@dataclass(frozen=True, slots=True)
class WritingLine:
    """The line that writes, the variable that it writes to, and the line that gave that its value (0: none was found)."""

    file: str
    line: int
    name: str
    mend: int
    tensor: bool
    function: str

    def facts(self) -> dict[str, float | str | bool]:
        """As the facts of an arm."""
        return {
            "file": self.file,
            "line": float(self.line),
            "text": linecache.getline(self.file, self.line).strip(),
            "name": self.name,
            "mend_line": float(self.mend),
            "mend_text": linecache.getline(self.file, self.mend).strip() if self.mend else "",
            "tensor": self.tensor,
            "function": self.function,
        }


class _Follower:
    """A trace function that looks after each line of the user's."""

    def __init__(self, state: Callable[[], Any]) -> None:
        self._state = state
        self._was = state()
        self._last: tuple[FrameType, int] | None = None
        self._lines: dict[FrameType, list[int]] = {}
        self.found: WritingLine | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if self.found is not None:
            return None
        if event == "call" and not is_user_file(frame.f_code.co_filename):
            return None  # a library's lines are the line's that called it
        self._look()
        if event == "line":
            self._last = frame, frame.f_lineno
            self._lines.setdefault(frame, []).append(frame.f_lineno)
        elif event == "return" and frame.f_back is not None and frame.f_back in self._lines:
            self._last = frame.f_back, frame.f_back.f_lineno
        return self

    def _look(self) -> None:
        if self._last is not None and self._state() != self._was:
            self.found = _described(*self._last, self._lines.get(self._last[0], []))

    def end(self) -> WritingLine | None:
        """The line, once all has run."""
        if self.found is None:
            self._look()
        self._lines, self._last = {}, None
        return self.found


def _described(frame: FrameType, line: int, ran: list[int]) -> WritingLine:
    file = frame.f_code.co_filename
    text = linecache.getline(file, line).strip()
    name = next((found["name"] for pattern in _WRITES if (found := pattern.search(text))), "")
    given = re.compile(rf"^{re.escape(name)}\s*(?::[^=]+)?=(?!=)\s*\S") if name else None
    before = [at for at in ran if at != line and given is not None and given.match(linecache.getline(file, at).strip())]
    held = frame.f_locals.get(name)  # while it is traced these are written back: nothing may be taken out of them
    return WritingLine(file, line, name, before[-1] if before else 0, isinstance(held, Tensor), frame.f_code.co_name)


def writing_line(work: Callable[[], object], state: Callable[[], Any]) -> WritingLine | None:
    """The first of the user's lines after which `state()` is another than before; None where none is. Only this thread."""
    follower, before = _Follower(state), sys.gettrace()
    sys.settrace(follower)
    try:
        work()
    finally:
        sys.settrace(before)
    return follower.end()
