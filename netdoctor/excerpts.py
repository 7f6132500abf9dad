"""The user's own lines around every place that a report can name, read while the files are still at hand."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Iterator

from netdoctor.finding import Location
from netdoctor.recording import Excerpt, Recording
from netdoctor.report import Report

AROUND = 4  # lines before and after
MOST = 2000  # lines in all: far more than any report shows, far less than would swell a saved recording
LONGEST = 400  # characters of a line
Place = tuple[str, int, str]  # file, line, its text as it was seen ("" where that is not known)


def gather(recording: Recording, report: Report) -> list[Excerpt]:
    """The excerpts around all lines that the recording or the report names, in order of file and line.

    A file that was changed since it ran, so that the text at a named line is another, gives none for that line.
    """
    wanted: dict[str, set[int]] = {}
    left = MOST
    for file, line, text in dict.fromkeys((*_of_report(report), *_of_recording(recording))):
        lines = linecache.getlines(file)
        if not 0 < line <= len(lines) or (text and lines[line - 1].strip() != text.strip()):
            continue
        near = set(range(max(1, line - AROUND), min(len(lines), line + AROUND) + 1)) - wanted.get(file, set())
        if len(near) > left:
            break
        left -= len(near)
        wanted.setdefault(file, set()).update(near)
    return [excerpt for file in sorted(wanted) for excerpt in _runs(file, sorted(wanted[file]))]


def _runs(file: str, numbers: list[int]) -> Iterator[Excerpt]:
    """One excerpt per row of lines without a gap."""
    lines = linecache.getlines(file)
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            kept = tuple(lines[number - 1].rstrip()[:LONGEST] for number in numbers[start:at])
            yield Excerpt(file, numbers[start], kept)
            start = at


def _of_report(report: Report) -> Iterator[Place]:
    for finding in (*report.findings, *report.ignored):
        yield from _of_locations(entry.location for entry in (finding, *finding.symptoms))


def _of_locations(locations: Iterable[Location]) -> Iterator[Place]:
    return ((at.file, at.line, at.text) for at in locations if at.file and at.line)


def _of_recording(recording: Recording) -> Iterator[Place]:
    sources = [layer.source for layer in recording.layers]
    sources += [optimizer.source for optimizer in recording.optimizers]
    sources += [event.source for event in recording.events]
    sources += [] if recording.origin is None else [recording.origin.source]
    yield from ((source.file, source.line, source.text) for source in sources if source is not None)
    graph = recording.graph
    yield from ((o.file, o.line, o.text) for o in ([] if graph is None else graph.operations) if o.file)
    yield from ((f.file, f.line, f.text) for f in (*recording.inputs, *recording.targets) if f.file)
