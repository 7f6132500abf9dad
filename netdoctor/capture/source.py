"""The user's own file and line behind a call: the nearest frame that is neither torch's, nor a library's, nor ours."""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import sysconfig
from types import CodeType, FrameType

from netdoctor.recording import SourceLine

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(
    os.path.abspath(path) + os.sep for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")} if path
)
_is_user: dict[str, bool] = {}
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
    frame = user_frame()
    while frame is not None:
        name = _name_in(frame, thing) if is_user_file(frame.f_code.co_filename) else ""
        if name:
            return name
        frame = frame.f_back
    return ""


def _name_in(frame: FrameType, thing: object) -> str:
    variables = variables_of(frame)
    for name, value in variables.items():
        if value is thing and not name.startswith("_") and name != "self":
            return name
    for name, value in list(getattr(variables.get("self"), "__dict__", {}).items()):
        if value is thing:
            return f"self.{name}"
    return ""


def variables_of(frame: FrameType) -> dict[str, object]:
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
