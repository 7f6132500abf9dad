"""A recording kept up to date on disk while the training runs, so that a killed process loses its last second, not its run.

The file is made of lines of strict JSON, as a saved recording is, but each line is a change: a piece that is new or other than
before ({"part", "key" or "at", "value"}), one that is "gone", or rows that a track or series got since ("from" row N on). A
batch of changes counts once its {"commit": steps} stands behind it: a process may be killed, or a disk be full, in the middle
of a line. When the changes take far more room than the recording would, the file is written anew beside and moved into place.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

from netdoctor.codec import plain
from netdoctor.errors import MisuseError
from netdoctor.recording import Recording, Series, Track

EVERY = 1.0  # seconds between two batches, at least
SHARE = 0.02  # of the time, at most, for gathering what is measured on sampled steps; a large model takes long
FREE = 0.5  # seconds of that which are not counted: what goes wrong at the start goes wrong at once
PULSE = frozenset({"steps", "counts", "losses", "scalars"})  # parts that change with every step
SLACK = 4 * 2**20  # bytes of changes that are always allowed, and
GROWTH = 3  # times the size of the whole, before the file is written anew
_BY_KEY = frozenset({"tracks", "losses", "scalars", "parameters", "arms"})
Piece = dict[str, Any]
Place = tuple[str, Any, int | None]


class Journal:
    """Writes what changed. The first batch makes the file, so that what stood there before is kept until then."""

    def __init__(self, path: str | os.PathLike[str], head: Piece) -> None:
        self._path = os.path.abspath(path)
        self._head = head | {"journal": True}
        self._process = os.getpid()
        self._file = -1
        self._started, self._due, self._spent = time.monotonic(), 0.0, 0.0
        self._sampled, self._news = -1, True
        self._sizes = (0, 0)  # bytes of the file when it was last written anew, and now
        self._written: dict[Place, Any] = {}  # what the file holds: how many rows, or the very value
        self.failure = ""  # why nothing is written any more

    def due(self) -> bool:
        """Whether the next batch may be written; never in a fork of the process, whose file it is not."""
        return time.monotonic() >= self._due and not self.failure and os.getpid() == self._process

    def due_in_full(self, sampled: int) -> bool:
        """Whether to gather everything, as of the step that was measured last: when there is news, and not too often."""
        news, self._sampled = sampled != self._sampled, sampled
        self._news = self._news or news
        wanted = self._news or self._is_long()
        allowed = FREE + SHARE * (time.monotonic() - self._started)
        return wanted and self._spent <= allowed and not self.failure

    def write(self, gather: Callable[[], Recording], parts: frozenset[str] | None = None) -> None:
        """Append what changed in these parts of the recording, or in all. A disk that cannot take it ends the journal, not the
        training; what stands there stays whole."""
        started = time.monotonic()
        try:
            self._append(gather(), parts)
        except OSError as error:
            self.failure = error.strerror or str(error)
            self.close()
        now = time.monotonic()
        self._due = now + EVERY
        if parts is None:
            self._news, self._spent = False, self._spent + now - started

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._sizes[1])  # a batch that was not finished counts for nothing
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = -1

    def _append(self, recording: Recording, parts: frozenset[str] | None) -> None:
        if parts is None and (self._file < 0 or self._is_long()):
            return self._anew(recording)
        if self._file < 0:
            return None  # the file begins with everything
        data = _encoded([*self._changes(recording, parts), {"commit": recording.steps}])
        _write_all(self._file, data)
        self._sizes = self._sizes[0], self._sizes[1] + len(data)
        return None

    def _is_long(self) -> bool:
        """Whether the changes take far more room than the whole did."""
        whole, now = self._sizes
        return now - whole > max(SLACK, GROWTH * whole)

    def _anew(self, recording: Recording) -> None:
        self._written.clear()
        data = _encoded([self._head, *self._changes(recording, None), {"commit": recording.steps}])
        folder, name = os.path.split(self._path)
        beside = os.path.join(folder, f".{name[:100]}.{self._process}.journal")
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _write_all(file, data)
            os.replace(beside, self._path)
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        self.close()
        self._file, self._sizes = file, (len(data), len(data))

    def _changes(self, recording: Recording, parts: frozenset[str] | None) -> Iterator[Piece]:
        gone = {place: kept for place, kept in self._written.items() if parts is None or place[0] in parts}
        for place, value in _places(recording):
            if parts is not None and place[0] not in parts:
                continue
            before = gone.pop(place, None)
            if isinstance(value, Track | Series):
                yield from self._rows(place, before, value)
            elif before is None or not _same(before, value):
                self._written[place] = value
                yield _named(place) | {"value": plain(value)}
        for place in gone:  # renamed, say: a second model came up, and paths got its name in front
            del self._written[place]
            yield _named(place) | {"gone": True}

    def _rows(self, place: Place, before: tuple[int, int] | None, now: Track | Series) -> Iterator[Piece]:
        """The rows since last time; of a series the last one again, for it may have been the beginning of an average."""
        count, last = before or (0, 0)
        self._written[place] = len(now.steps), int(now.steps[-1]) if len(now.steps) else 0
        if count == 0 or count > len(now.steps) or now.steps[count - 1] != last:
            yield _named(place) | {"value": plain(now)}
            return
        start = count if isinstance(now, Track) else count - 1
        if start < len(now.steps):
            rows = type(now)(now.steps[start:], now.values[start:])
            yield _named(place) | {"from": start, "value": plain(rows)}


def _places(recording: Recording) -> Iterator[tuple[Place, Any]]:
    """Everything in a recording, each with what tells it from all others: (field, key, number in its list)."""
    for part in fields(recording):
        value = getattr(recording, part.name)
        if part.name == "graph" or value is None:
            continue  # the first of the graphs
        if part.name in _BY_KEY:
            yield from (((part.name, key, None), one) for key, one in value.items())
        elif isinstance(value, list):
            yield from (((part.name, None, at), one) for at, one in enumerate(value))
        else:
            yield (part.name, None, None), value


def _same(before: Any, now: Any) -> bool:
    try:
        return bool(before == now)
    except ValueError:  # of arrays
        return bool(plain(before) == plain(now))


def _named(place: Place) -> Piece:
    part, key, at = place
    if part == "tracks":
        return {"part": part, "key": [plain(key[0]), key[1].value]}
    return {"part": part, "key": key} if at is None else {"part": part, "at": at}


def replayed(lines: Iterable[tuple[int, Any]]) -> tuple[list[Piece], int]:
    """The pieces that a journal's changes (number of the line, parsed line) add up to, and the steps at its last commit.

    Raises MisuseError with the line that is not what it should be.
    """
    state: dict[str, Piece] = {}
    waiting: list[Piece] = []
    steps = 0
    for number, line in lines:
        if not isinstance(line, dict):
            raise MisuseError(f"line {number}: not an object")
        if "commit" not in line:
            waiting.append(line)
            continue
        if type(line["commit"]) is not int:
            raise MisuseError(f"line {number}: a commit must be a whole number of steps")
        steps = line["commit"]
        for change in waiting:
            _apply(state, change, number)
        waiting.clear()
    return [{k: v for k, v in piece.items() if k not in ("at", "from")} for piece in state.values()], steps


def _apply(state: dict[str, Piece], change: Piece, number: int) -> None:
    if not isinstance(change.get("part"), str):
        raise MisuseError(f'line {number} or before: a change must have a "part"')
    identity = _identity(change)
    if change.get("gone") is True:
        state.pop(identity, None)
        return
    if "from" in change:
        old = state.get(identity)
        try:
            value = _joined(old["value"] if old is not None else {}, change["from"], change["value"])
        except (KeyError, TypeError, ValueError, IndexError):
            raise MisuseError(f"line {number} or before: rows that do not follow on what was there") from None
        change = {"part": change["part"], "key": change.get("key"), "value": value}
    state[identity] = change


def _joined(old: Piece, start: object, new: Piece) -> Piece:
    if type(start) is not int or not 0 <= start <= len(old["steps"]):
        raise ValueError
    steps, ours, theirs = old["steps"][:start] + new["steps"], old["values"], new["values"]
    if isinstance(ours, list) and isinstance(theirs, list):
        return {"steps": steps, "values": ours[:start] + theirs}
    if ours["shape"][1:] != theirs["shape"][1:]:
        raise ValueError
    width = len(ours["values"]) // ours["shape"][0]
    flat = ours["values"][: start * width] + theirs["values"]
    return {"steps": steps, "values": {"shape": [start + theirs["shape"][0], *ours["shape"][1:]], "values": flat}}


def _identity(piece: Piece) -> str:
    """What tells a piece from all others: its part, and its key or its place in the list."""
    return json.dumps([piece["part"], piece.get("key"), piece.get("at")], sort_keys=True)


def _encoded(lines: list[Piece]) -> bytes:
    return b"".join(json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n" for line in lines)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
