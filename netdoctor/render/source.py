"""The user's lines around a finding, and a fix as the change of those lines."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from difflib import SequenceMatcher

from netdoctor.finding import Fix, Location
from netdoctor.recording import Recording
from netdoctor.render import wording

AROUND = 3  # lines before and after
ALIKE = 0.6  # of difflib's ratio: a rewritten line keeps most of its words, another statement does not
SAME, OLD, NEW = " ", "-", "+"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number (None for a new one), its text, and SAME, OLD (named, or taken out) or NEW."""

    number: int | None
    text: str
    sign: str = SAME


def context(location: Location, recording: Recording | None) -> list[Line]:
    """The lines around a location, its own marked OLD, without common indentation; only its own where no more is known."""
    if not location.file or not location.line:
        return [Line(None, wording.clean(location.text, 400), OLD)] if location.text else []
    near = range(location.line - AROUND, location.line + AROUND + 1)
    known = _lines(recording, location.file)
    if location.line not in known:
        return [Line(location.line, wording.clean(location.text, 400), OLD)] if location.text else []
    numbers = [number for number in near if number in known]
    numbers = _without_blank_ends(numbers, known)
    text = wording.clean_code("\n".join(known[number] or " " for number in numbers), 400)
    dedented = textwrap.dedent(text).split("\n")
    return [Line(n, t, OLD if n == location.line else SAME) for n, t in zip(numbers, dedented, strict=False)]


def _lines(recording: Recording | None, file: str) -> dict[int, str]:
    excerpts = [] if recording is None else [e for e in recording.excerpts if e.file == file]
    return {number: text for e in excerpts for number, text in enumerate(e.lines, e.first)}


def _without_blank_ends(numbers: list[int], known: dict[int, str]) -> list[int]:
    while numbers and not known[numbers[0]].strip():
        numbers = numbers[1:]
    while numbers and not known[numbers[-1]].strip():
        numbers = numbers[:-1]
    return numbers


def change(fix: Fix, location: Location, shown: list[Line]) -> list[Line]:
    """The fix as a change of the lines that `context` gave; [] where its code does not replace or surround the named line.

    A code that holds the named line as it is adds what stands before and after it; one whose first statement is
    mostly the same replaces it.
    """
    code = [line for line in wording.clean_code(fix.code).split("\n") if line.strip()]
    own = next((line for line in shown if line.sign == OLD), None)
    if not code or own is None or not own.text.strip():
        return []
    indent = own.text[: len(own.text) - len(own.text.lstrip())]
    new = [Line(None, indent + line, NEW) for line in code]
    kept = next((at for at, line in enumerate(code) if line.strip() == own.text.strip()), None)
    if kept is not None:
        new[kept] = Line(own.number, own.text)
        middle = new
    elif _alike(own.text, code):
        middle = [own, *new]
    else:
        return []
    at = shown.index(own)
    return [*shown[max(0, at - 2) : at], *middle, *shown[at + 1 : at + 3]]


def _alike(old: str, code: list[str]) -> bool:
    """Whether the first statement of the code is the old line with something changed in it."""
    first = next((line for line in code if not line.lstrip().startswith("#")), "")
    return SequenceMatcher(None, old.strip(), first.strip(), autojunk=False).ratio() >= ALIKE
