"""The user's own file and line behind a call: the nearest frame that is neither torch's, nor a library's, nor ours."""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from netdoctor.recording import SourceLine

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(
    os.path.abspath(path) + os.sep for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")} if path
)
_is_user: dict[str, bool] = {}
_DEEP, _MANY = 3, 2_000  # levels below the variables, and things looked at in all, before a tensor stays nameless
_OURS = 3  # references to a frame's copy of its variables: the frame's, the one here, and that of the question


def is_user_file(filename: str) -> bool:
    """True for code that the user wrote: not netdoctor, not the standard library, not an installed package."""
    known = _is_user.get(filename)
    if known is None:
        known = _is_user[filename] = _judge(filename)
    return known


def _judge(filename: str) -> bool:
    if filename.startswith("<"):
        return filename.startswith(("<ipython", "<stdin", "<string"))
    path = os.path.abspath(filename)
    if (
        path.startswith(_HERE + os.sep)
        or f"{os.sep}site-packages{os.sep}" in path
        or f"{os.sep}dist-packages{os.sep}" in path
    ):
        return False
    return not path.startswith(_LIBRARIES)


def user_frame(within: CodeType | None = None) -> FrameType | None:
    """The nearest frame of the user's code on this thread's stack, or None; not looking beyond a call of `within`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = None if frame.f_code is within else frame.f_back
    return frame


def user_position(within: CodeType | None = None) -> tuple[str, int]:
    """File and line of the nearest user frame; ("", 0) when there is none. About one microsecond."""
    frame = user_frame(within)
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def user_chain(depth: int = 4) -> tuple[tuple[str, int, int], ...]:
    """The user's nearest frames, innermost first, as file, line and place in the bytecode: which call of a function this is."""
    found: list[tuple[str, int, int]] = []
    frame = user_frame()
    while frame is not None and len(found) < depth:
        if is_user_file(frame.f_code.co_filename):
            found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def source_line(file: str, line: int) -> SourceLine | None:
    """The line with its text, or None when the position is unknown."""
    return SourceLine(file, line, linecache.getline(file, line).strip()) if file else None


def user_line() -> SourceLine | None:
    """The nearest user line with its text."""
    return source_line(*user_position())


def line_outside_of(thing: object) -> SourceLine | None:
    """The nearest user line that is not in a method of `thing`: where it is built, not where its class calls its base."""
    frame = user_frame()
    while frame is not None:
        if is_user_file(frame.f_code.co_filename) and variables_of(frame).get("self") is not thing:
            return source_line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def variable_name(thing: object) -> str:
    """The name under which the user's nearest frames hold `thing` ("model", "self.net"), or "" when none does."""
    return _searched(lambda variables: _held(variables, thing))


def holder_name(thing: object) -> str:
    """How the user's nearest frames reach `thing` inside a list, a dict or an object ("layers[0].W"), or "".

    Only plain containers and attributes are looked at, `_DEEP` levels down and `_MANY` things at most, and nothing of
    the user's is called.
    """
    return _searched(lambda variables: _reached(variables, thing))


def _searched(find: Callable[[dict[str, Any]], str]) -> str:
    """What `find` says of the variables of the nearest user frame for which it says anything."""
    frame = user_frame()
    while frame is not None:
        name = _found_in(frame, find) if is_user_file(frame.f_code.co_filename) else ""
        if name:
            return name
        frame = frame.f_back
    return ""


def _found_in(frame: FrameType, find: Callable[[dict[str, Any]], str]) -> str:
    return find(variables_of(frame))


def variables_of(frame: FrameType) -> dict[str, Any]:
    """The variables of a running function or module, as they are now, in a dictionary of its own."""
    variables = frame.f_locals
    try:
        return dict(variables)
    finally:
        # Before Python 3.13 a function's f_locals is a copy that the frame keeps, and with it all that the function deletes.
        # Its variables are taken out again, unless somebody else holds the copy: the user, who called `locals()`.
        code = frame.f_code
        copied = type(variables) is dict and code.co_flags & inspect.CO_OPTIMIZED
        if copied and sys.version_info < (3, 13) and sys.getrefcount(variables) <= _OURS:
            for name in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
                variables.pop(name, None)


def _held(variables: dict[str, Any], thing: object) -> str:
    for name, value in list(variables.items()):
        if value is thing and not name.startswith("_") and name != "self":
            return name
    for name, value in list(getattr(variables.get("self"), "__dict__", {}).items()):
        if value is thing:
            return f"self.{name}"
    return ""


def _reached(variables: dict[str, Any], thing: object) -> str:
    """Breadth first, so that the shortest expression is found."""
    level = [(name, value) for name, value in list(variables.items()) if not name.startswith("_")]
    left, seen = _MANY, set[int]()
    for _ in range(_DEEP):
        below: list[tuple[str, object]] = []
        for expression, value in level:
            for name, part in _parts(expression, value):
                if part is thing:
                    return name
                left -= 1
                if left < 0:
                    return ""
                if id(part) not in seen:
                    seen.add(id(part))
                    below.append((name, part))
        level = below
    return ""


def _parts(expression: str, value: Any) -> list[tuple[str, object]]:
    """What a container, or an object of a class of the user's, holds, each part with its expression."""
    if type(value) in (list, tuple):
        return [(f"{expression}[{number}]", part) for number, part in enumerate(value[:_MANY])]
    if type(value) is dict:
        return [(f"{expression}[{key!r}]", part) for key, part in list(value.items()) if type(key) in (str, int)]
    home = getattr(sys.modules.get(type(value).__module__), "__file__", None)
    if home is None or not is_user_file(home):
        return []
    held = value.__dict__ if type(getattr(value, "__dict__", None)) is dict else {}
    return [(f"{expression}.{name}", part) for name, part in list(held.items()) if name.isidentifier()]
