"""A Report from its JSON form: the inverse of `Report.to_dict`, for data that may come from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

from netdoctor.errors import MisuseError
from netdoctor.finding import (
    Abstention,
    Certainty,
    Evidence,
    Finding,
    Fix,
    Location,
    Measured,
    Reach,
    Severity,
    Trial,
    Verdict,
)
from netdoctor.recording import Role, Site, Stat
from netdoctor.report import FORMAT, Crash, Experiment, Report

VERDICTS = ("sick", "healthy", "not observed")
NAMED_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
T = TypeVar("T")
E = TypeVar("E", bound=Enum)


def from_dict(data: object) -> Report:
    """The report that `to_dict` (or the parsed JSON file) describes; keys that are not known are passed over.

    Of an evidence's site only the name and the role come back, of a symptom only what the JSON form holds.
    Raises MisuseError that names the first entry which is missing or of the wrong kind.
    """
    top = _Reader(data, "report")
    form = top.get("format", int)
    if form != FORMAT:
        raise MisuseError(f"this is a report of format {form}; this version of netdoctor reads format {FORMAT}")
    verdict = top.get("verdict", str)
    if verdict not in VERDICTS:
        raise top.wrong("verdict", f"one of {', '.join(VERDICTS)}")
    costs = top.child("cost")
    return Report(
        target=top.get("target", str),
        verdict=verdict,
        steps=top.get("steps", int),
        findings=top.each("findings", _finding),
        ignored=top.each("ignored", _finding, optional=True),
        experiments=top.each("experiments", lambda e: Experiment(*e.strings("name", "verdict", "says"))),
        abstentions=top.each("abstentions", lambda a: Abstention(*a.strings("check", "reason"))),
        crashes=top.each("crashes", lambda c: Crash(*c.strings("where", "error"))),
        passed=top.all_of("passed", str),
        blind_spots=top.all_of("blind_spots", str),
        netdoctor=top.get("netdoctor", str),
        torch=top.get("torch", str),
        ended=top.get("ended", str, "finished"),
        observing_s=costs.number("observing_s"),
        experiments_s=costs.number("experiments_s"),
        losses=_losses(top),
    )


def _losses(top: _Reader) -> dict[str, tuple[float, float]]:
    table = top.child("losses")
    ends = {label: table.numbers(label) for label in table.data}
    for label, pair in ends.items():
        if len(pair) != 2:
            raise table.wrong(label, "two numbers, the first and the last loss")
    return {label: (first, last) for label, (first, last) in ends.items()}


def _finding(entry: _Reader) -> Finding:
    return Finding(
        check=entry.get("check", str),
        title=entry.get("title", str),
        severity=entry.member("severity", Severity),
        explanation=entry.get("explanation", str),
        location=_location(entry.child("location")),
        evidence=entry.each("evidence", _evidence),
        fixes=entry.each("fixes", _fix),
        certainty=entry.member("certainty", Certainty),
        first_step=entry.maybe("first_step", int),
        places=entry.all_of("places", str),
        share=entry.number("share", 0.0),
        symptoms=entry.each("symptoms", _symptom),
    )


def _symptom(entry: _Reader) -> Finding:
    check, title = entry.strings("check", "title")
    return Finding(check, title, entry.member("severity", Severity), "", _location(entry.child("location")))


def _location(entry: _Reader) -> Location:
    return Location(
        entry.maybe("module", str),
        entry.maybe("operation", str),
        entry.maybe("file", str),
        entry.maybe("line", int),
        entry.get("text", str, ""),
        entry.maybe("step", int),
        entry.all_of("samples", int),
    )


def _evidence(entry: _Reader) -> Evidence:
    return Evidence(
        quantity=entry.get("quantity", str),
        measured=entry.number("measured"),
        relation=entry.get("relation", str),
        limit=entry.number("limit"),
        unit=entry.get("unit", str),
        site=_site(entry),
        stat=entry.member("stat", Stat) if entry.data.get("stat") is not None else None,
    )


def _site(entry: _Reader) -> Site | None:
    """A site from "body.3.weight weight gradient"; roles are tried longest first, for one ends with another's name."""
    text = entry.get("site", str)
    if not text:
        return None
    for role in sorted(Role, key=lambda role: -len(role.value)):
        if text.endswith(f" {role.value}"):
            name = text[: -len(role.value) - 1]
            of_parameter = role in {Role.WEIGHT, Role.WEIGHT_GRADIENT, Role.UPDATE}
            return Site("", "", role, 0, name) if of_parameter else Site(name, "", role)
    raise entry.wrong("site", "a name and a role, such as 'body.3 output'")


def _fix(entry: _Reader) -> Fix:
    treatment, says, code = entry.strings("treatment", "says", "code")
    trial = None if entry.data.get("trial") is None else _trial(entry.child("trial"))
    return Fix(treatment, says, code, entry.member("reach", Reach), trial)


def _trial(entry: _Reader) -> Trial:
    return Trial(
        verdict=entry.member("verdict", Verdict),
        control=entry.numbers("control"),
        treated=entry.numbers("treated"),
        steps=entry.get("steps", int),
        seconds=entry.number("seconds"),
        says=entry.get("says", str),
        side_effects=entry.all_of("side_effects", str, optional=True),
        measured=None if entry.data.get("measured") is None else _measured(entry.child("measured")),
    )


def _measured(entry: _Reader) -> Measured:
    quantity, unit = entry.strings("quantity", "unit")
    return Measured(quantity, entry.number("control"), entry.number("treated"), unit)


class _Reader:
    """A dictionary from a file, read entry by entry: each is of the kind asked for, or a MisuseError names it."""

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, Mapping):
            raise MisuseError(f"not a netdoctor report: {path} is not an object")
        self.data: Mapping[str, Any] = data
        self.path = path

    def wrong(self, key: str, wanted: str) -> MisuseError:
        """The error for an entry that is not what was wanted."""
        return MisuseError(f"not a netdoctor report: {self.path}.{key[:80]} must be {wanted}")

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The entry, or the default where there is none."""
        value = self.data.get(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(key, {str: "a text", int: "a whole number"}.get(kind, kind.__name__))
        return value

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """The entry, or None where there is none or null."""
        return None if self.data.get(key) is None else self.get(key, kind)

    def strings(self, *keys: str) -> list[str]:
        """Several texts."""
        return [self.get(key, str) for key in keys]

    def number(self, key: str, default: float | None = None) -> float:
        """A number, where the strings "NaN", "Infinity" and "-Infinity" are numbers too."""
        return self._number(key, self.data.get(key, default))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        return tuple(self._number(key, value) for value in self._list(key))

    def all_of(self, key: str, kind: type[T], optional: bool = False) -> tuple[T, ...]:
        """A list of entries of one kind."""
        values = [] if optional and key not in self.data else self._list(key)
        if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            raise self.wrong(key, "a list of texts" if kind is str else "a list of whole numbers")
        return tuple(values)

    def member(self, key: str, kind: type[E]) -> E:
        """One of the values of an enumeration."""
        try:
            return kind(self.data.get(key))
        except ValueError:
            raise self.wrong(key, f"one of {', '.join(str(m.value) for m in kind)}") from None

    def child(self, key: str) -> _Reader:
        """A dictionary inside of this one."""
        return _Reader(self.data.get(key), f"{self.path}.{key}")

    def each(self, key: str, build: Callable[[_Reader], T], optional: bool = False) -> tuple[T, ...]:
        """A list of dictionaries, each built into a value."""
        values = [] if optional and key not in self.data else self._list(key)
        return tuple(build(_Reader(value, f"{self.path}.{key}[{at}]")) for at, value in enumerate(values))

    def _list(self, key: str) -> list[Any]:
        values = self.data.get(key)
        if not isinstance(values, list | tuple):
            raise self.wrong(key, "a list")
        return list(values)

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, str) and value in NAMED_NUMBERS:
            return NAMED_NUMBERS[value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        try:
            return float(value)
        except OverflowError:
            raise self.wrong(key, "a number that fits into 64 bits") from None
