"""Warnings at the user's line: torch names the caller of a function, which is one of ours while we stand in between.

Such a warning is given once more for the line that it would have named without us, so that the user's own filters hold, and
it is shown as often as without us. What our own work alone gave rise to is not shown.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch.overrides

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_OVERRIDES = torch.overrides.__file__  # between a function that a mode watches, and the same one below the mode
# Where the user's calls pass through us; what is said anywhere else in netdoctor is about our own work.
_PASSAGES = frozenset(
    os.path.join(_ROOT, "capture", name)
    for name in ("operations.py", "reporting.py", "observer.py", "taps.py", "calls.py", "clipping.py", "customs.py",
                 "checkpoints.py")
)  # fmt: skip
Show = Callable[..., None]


def users_warnings(original: Show) -> Show:
    """A `warnings.showwarning` that moves what names a line of ours to the user's."""

    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        ours = _frame_of(filename) if filename.startswith(_ROOT) else None
        if ours is None:
            return original(message, category, filename, lineno, file, line)
        ours.f_globals.get(
            "__warningregistry__", {}
        ).clear()  # it would keep the next one of another line from being shown
        warnings.onceregistry.pop((str(message), category), None)  # type: ignore[attr-defined]
        caller = _caller(ours)
        if filename not in _PASSAGES or caller is None:
            return None
        told = caller.f_globals
        return warnings.warn_explicit(
            message,
            category,
            caller.f_code.co_filename,
            caller.f_lineno,
            told.get("__name__", "<unknown>"),
            told.setdefault("__warningregistry__", {}),
            told,
        )

    return show


def _frame_of(filename: str) -> FrameType | None:
    """The innermost running frame of a file."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != filename:
        frame = frame.f_back
    return frame


def _caller(ours: FrameType) -> FrameType | None:
    """Who would have called without us: None where we called by ourselves, as a search for the first NaN does."""
    frame: FrameType | None = ours
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _OVERRIDES and frame.f_back is not None:
            frame = frame.f_back  # the function that the user called, above the mode
        elif name.startswith(_ROOT):
            if name not in _PASSAGES:
                return None
        else:
            return frame
        frame = frame.f_back
    return None
