"""A Recording in a file, format 1: lines of strict JSON, so that it can be written piece by piece and read without torch.

The first line names the format. Every other line is one piece: {"part": FIELD, "value": ...}, with "key" for the fields
that are dictionaries. A piece of a list field is appended, one of a dictionary or of a single value replaces what is there,
so a writer may go on adding pieces while the training runs. {"part": "end"} is the last line; without it the file was cut
short, and what is there is read. The report of the time may stand among the pieces: it holds the trials of the fixes,
which cannot be run again. Nothing of a file is ever run.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

import numpy as np

from netdoctor import journal
from netdoctor.codec import built, plain
from netdoctor.errors import MisuseError
from netdoctor.graph import StepGraph
from netdoctor.recording import FORMAT, Histogram, Recording, Site, Stat, Track
from netdoctor.report import Report
from netdoctor.reportfile import from_dict

LARGEST = 512 * 2**20  # bytes; an hour of a model with 300 layers takes about 10 MiB
LONGEST = 64 * 2**20  # bytes of one line: one track, or one step's graph
_OLDEST = 1
_CUT_SHORT = "the recording was cut short: what came after its last whole line is missing"


@dataclass(slots=True)
class Saved:
    """What a file holds: the recording, and the report that was made of it, if there was one."""

    recording: Recording = field(default_factory=Recording)
    report: Report | None = None


def lines(recording: Recording, report: Report | None = None) -> Iterator[str]:
    """The file's lines, each with its line break."""
    yield _line(head(recording.header.netdoctor))
    for part in dataclasses.fields(recording):
        yield from map(_line, _pieces(part.name, getattr(recording, part.name), recording))
    if report is not None:
        yield _line({"part": "report", "value": json.loads(report.to_json())})
    yield _line({"part": "end"})


def head(version: str) -> dict[str, Any]:
    """The first line: what the file is, and the version of netdoctor that wrote it."""
    return {"format": FORMAT, "holds": "recording", "netdoctor": version}


def _pieces(part: str, value: Any, recording: Recording) -> Iterator[dict[str, Any]]:
    if part == "graph" and recording.graphs and value is recording.graphs[0]:
        return  # the first of all is this one, unless another is written
    if part == "tracks":
        for (site, stat), track in value.items():
            yield {"part": part, "key": [plain(site), stat.value], "value": plain(track)}
    elif part in ("arms", "parameters", "losses", "scalars"):
        yield from ({"part": part, "key": key, "value": plain(entry)} for key, entry in value.items())
    elif isinstance(value, list):
        yield from ({"part": part, "value": plain(entry)} for entry in value)
    elif value is not None:
        yield {"part": part, "value": plain(value)}


def _line(piece: dict[str, Any]) -> str:
    return json.dumps(piece, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def holds_recording(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a recording does. Raises MisuseError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            first = json.loads(file.readline(4096))
    except OSError as error:
        raise MisuseError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("holds") == "recording"


def load(path: str | os.PathLike[str]) -> Saved:
    """Read what was saved. Raises MisuseError with the line where the file is not what it should be."""
    name = os.fspath(path)
    try:
        if os.path.getsize(path) > LARGEST:
            raise MisuseError(f"{name} is larger than {LARGEST // 2**20} MiB, so it is no recording of netdoctor")
        with open(path, "rb") as file:
            return _read(file, name)
    except OSError as error:
        raise MisuseError(f"cannot read {name}: {error.strerror or error}") from error


def _read(file: BinaryIO, name: str) -> Saved:
    first = file.readline(LONGEST)
    _check_format(first, name)
    saved, ended = Saved(), False
    if json.loads(first).get("journal") is True:
        return _read_journal(file, name)
    for number, (raw, last) in enumerate(_with_last(_raw_lines(file, name)), 2):
        try:
            piece = json.loads(raw)
        except (ValueError, RecursionError) as error:
            if last and not raw.endswith(b"\n"):
                break  # the writer was stopped in the middle of it
            raise MisuseError(f"{name}, line {number}: not JSON: {str(error)[:200]}") from error
        try:
            ended = _add(saved, piece)
        except MisuseError as error:
            raise MisuseError(f"{name}, line {number}: {error}") from error
    _complete(saved, ended, name)
    return saved


def _read_journal(file: BinaryIO, name: str) -> Saved:
    """What a run that never came to its end kept on disk."""
    saved = Saved()
    try:
        found, steps = journal.replayed(_parsed(file, name))
        for piece in found:
            _add(saved, piece)
    except MisuseError as error:
        raise MisuseError(f"{name}: {error}") from error
    _complete(saved, True, name)
    saved.recording.blind_spots.append(f"the run was cut off: what came after step {steps} is not in the file")
    return saved


def _parsed(file: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    for number, (raw, last) in enumerate(_with_last(_raw_lines(file, name)), 2):
        try:
            yield number, json.loads(raw)
        except (ValueError, RecursionError) as error:
            if not (last and not raw.endswith(b"\n")):
                raise MisuseError(f"line {number}: not JSON: {str(error)[:200]}") from error


def _raw_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    while raw := file.readline(LONGEST):
        if len(raw) == LONGEST:
            raise MisuseError(f"{name} has a line of more than {LONGEST // 2**20} MiB, so it is no recording")
        yield raw


def _with_last(items: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    before: bytes | None = None
    for item in items:
        if before is not None:
            yield before, False
        before = item
    if before is not None:
        yield before, True


def _check_format(first: bytes, name: str) -> None:
    try:
        head = json.loads(first)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or head.get("holds") != "recording" or type(head.get("format")) is not int:
        raise MisuseError(f"{name} is not a recording of netdoctor")
    if not _OLDEST <= head["format"] <= FORMAT:
        raise MisuseError(
            f"{name} is a recording of format {head['format']}; this version of netdoctor reads formats up to {FORMAT}"
        )


def _add(saved: Saved, piece: object) -> bool:
    """Put one piece where it belongs; True for the end. Parts of later versions are passed over."""
    if not isinstance(piece, dict) or not isinstance(piece.get("part"), str):
        raise MisuseError('a piece must be an object with a "part"')
    part, value = piece["part"], piece.get("value")
    if part == "end":
        return True
    if part == "report":
        saved.report = from_dict(value)
    elif part == "tracks":
        site, stat = built(tuple[Site, Stat], piece.get("key"), "tracks.key")
        saved.recording.tracks[site, stat] = _matched(built(Track, value, "tracks"), "tracks")
    elif part in (kinds := get_type_hints(Recording)):
        _put(saved.recording, part, kinds[part], piece.get("key"), value)
    return False


def _put(recording: Recording, part: str, kind: Any, key: object, value: object) -> None:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is list:
        entry = built(inner[0], value, part)
        if isinstance(entry, Histogram) and not entry.sound:
            raise MisuseError(f"{part} must have one row of counts per step")
        getattr(recording, part).append(entry)
    elif origin is dict and part in ("arms", "parameters", "losses", "scalars"):
        if not isinstance(key, str):
            raise MisuseError(f"{part} must have a text as their key")
        made = built(inner[1], value, f"{part}.{key[:80]}")
        getattr(recording, part)[key] = _matched(made, part) if part in ("losses", "scalars") else made
    else:
        setattr(recording, part, built(kind, value, part))


def _matched(made: Any, part: str) -> Any:
    """A track or series whose steps and values belong together."""
    if made.steps.ndim != 1 or made.values.ndim not in (1, 2) or len(made.steps) != len(made.values):
        raise MisuseError(f"{part} must have one value, or one row of values, per step")
    if np.any(np.diff(made.steps) < 0):
        raise MisuseError(f"{part} must have ascending steps")
    return made


def _complete(saved: Saved, ended: bool, name: str) -> None:
    recording = saved.recording
    if recording.graph is None and recording.graphs:
        recording.graph = recording.graphs[0]
    for graph in (recording.graph, *recording.graphs):
        if graph is not None and not _sound(graph):
            raise MisuseError(f"{name}: a graph refers to an operation or a value that it does not hold")
    if not ended:
        recording.blind_spots.append(_CUT_SHORT)


def _sound(graph: StepGraph) -> bool:
    """Whether all indices of a graph lead into it, and every operation and value stands at its own index."""
    values, operations = range(len(graph.values)), range(len(graph.operations))
    return (
        all(operation.index == at for at, operation in enumerate(graph.operations))
        and all(value.index == at for at, value in enumerate(graph.values))
        and all(at in values for operation in graph.operations for at in (*operation.inputs, *operation.outputs))
        and all(value.producer is None or value.producer in operations for value in graph.values)
        and (graph.loss is None or graph.loss in values)
        and all(at in values for draw in graph.draws for at in (draw.value, *draw.log_probs))
    )
