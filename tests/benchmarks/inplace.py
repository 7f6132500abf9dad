"""The CPU time that netdoctor's own code takes of a training step, read in place.

The steps of a large model differ from one to the next by several times what watching them costs, so a ratio of two steps says
nothing. A profile function is told of every call and return instead, and charges the time between them to netdoctor or to the
training: to netdoctor from where its code is entered until it returns or calls what it stands in the place of. What being told
costs is measured first, and taken off. What caches lose by netdoctor's reading is not in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

import netdoctor
from netdoctor.capture.operations import OperationMode

_PASSES_ON = OperationMode.__torch_function__.__code__  # what it calls in torch is the training's own operation
_OURS = str(Path(netdoctor.__file__).parent)
_CALLS = 20_000  # from which the cost of being told is measured


class Clock:
    """Seconds of CPU time inside of netdoctor. `originals`: the functions of torch that netdoctor's stand in the place of."""

    def __init__(self, originals: Iterable[Any]) -> None:
        given = [*originals, nn.Module._call_impl]  # which netdoctor calls by itself where nothing stands between
        self._theirs = {code for function in given if (code := getattr(function, "__code__", None)) is not None}
        self._told = (0.0, 0.0)
        self._told = tuple(self._cost(work, at) for at, work in enumerate((_python_calls, _calls_of_c)))
        self._reset()

    def time(self, step: Callable[[], None], ours: bool = False) -> float:
        """Seconds of ours in one step; `ours`: all of it is."""
        self._reset(ours)
        sys.setprofile(self._see)
        try:
            step()
        finally:
            sys.setprofile(None)
        return self._seconds - sum(count * cost for count, cost in zip(self._events, self._told, strict=True))

    def _reset(self, ours: bool = False) -> None:
        self._seconds, self._events = 0.0, [0, 0]  # events of Python calls, of calls of C
        self._owners, self._since = (
            [ours],
            time.thread_time(),
        )  # of the frames that are running: whether their time is ours

    def _cost(self, work: Callable[[], None], kind: int) -> float:
        """Seconds that one event of a kind takes of what is charged."""
        work()
        began = time.thread_time()
        work()
        bare = time.thread_time() - began
        told = self.time(work, ours=True)
        return max(0.0, told - bare) / self._events[kind]

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        inside = event.startswith("c_")
        if inside and frame.f_code is not _PASSES_ON:  # a call of C belongs to who makes it
            self._events[1] += self._owners[-1]
            return
        now, owner = time.thread_time(), self._owners[-1]
        if owner:
            self._seconds += now - self._since
            self._events[0] += 1
        if event in ("call", "c_call"):
            self._owners.append(not inside and self._is_ours(frame, owner))
        elif len(self._owners) > 1:
            self._owners.pop()
        self._since = time.thread_time()

    def _is_ours(self, frame: FrameType, caller: bool) -> bool:
        code, back = frame.f_code, frame.f_back
        if code.co_filename.startswith(_OURS):
            return True
        return caller and code not in self._theirs and (back is None or back.f_code is not _PASSES_ON)


def _nothing() -> None:
    pass


def _python_calls() -> None:
    for _ in range(_CALLS):
        _nothing()


def _calls_of_c() -> None:
    for _ in range(_CALLS):
        len(())
