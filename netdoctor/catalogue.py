"""Finds the checks, and applies what a user selects, ignores and overrides.

Built-in checks are found by a walk over the folders of `netdoctor.checks`, others by entry points of the group
"netdoctor.checks", each naming a `Check` subclass or a module that holds some.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import netdoctor.checks
from netdoctor.check import Check
from netdoctor.errors import MisuseError
from netdoctor.finding import Finding
from netdoctor.report import Crash

GROUP = "netdoctor.checks"


@dataclass(frozen=True)
class _Found:
    checks: tuple[Check, ...]
    crashes: tuple[Crash, ...]


def all_checks() -> tuple[Check, ...]:
    """Every check with its default thresholds, ordered by name."""
    return _found().checks


def crashes() -> tuple[Crash, ...]:
    """The modules and entry points that could not be loaded, or brought no usable check."""
    return _found().crashes


def load(
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    thresholds: Mapping[str, Mapping[str, object]] | None = None,
) -> list[Check]:
    """The checks that a user wants, with the user's thresholds.

    `select` and `ignore` hold NAME or NAME:LAYER-GLOB; an empty `select` means all. A check ignored by its bare name
    does not run; with a glob it runs, and `is_ignored` later tells which of its findings to leave out.

    Raises:
        MisuseError: for an unknown check or threshold (naming the nearest), or a value of the wrong type.
    """
    overrides = thresholds or {}
    known = {check.name: check for check in all_checks()}
    for name in (*map(_name, select), *map(_name, ignore), *overrides):
        if name not in known:
            raise MisuseError(f"unknown check {name!r}{_nearest(name, known)}; `netdoctor checks` lists all")
    wanted = set(map(_name, select)) or set(known)
    wanted -= {pattern for pattern in ignore if ":" not in pattern}
    return [_with(check, overrides.get(name, {})) for name, check in known.items() if name in wanted]


def is_ignored(finding: Finding, ignore: Iterable[str]) -> bool:
    """Whether a NAME or NAME:LAYER-GLOB of `ignore` covers the finding, with every place that it names."""
    return any(_covers(pattern, finding) for pattern in ignore)


def is_selected(finding: Finding, select: Sequence[str]) -> bool:
    """Whether `select` is empty, does not name the finding's check, or names it for at least one of its places."""
    own = [pattern for pattern in select if _name(pattern) == finding.check]
    return not own or any(_covers(pattern, finding, whole=False) for pattern in own)


def _name(pattern: str) -> str:
    return pattern.partition(":")[0]


def _covers(pattern: str, finding: Finding, whole: bool = True) -> bool:
    name, colon, glob = pattern.partition(":")
    if name != finding.check or not colon:
        return name == finding.check
    places = finding.places or (finding.location.module or "",)
    hits = [fnmatch.fnmatchcase(place, glob) for place in places]
    return all(hits) if whole else any(hits)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.replace("_", "-"), list(known), 1)
    return f", did you mean {near[0]!r}?" if near else ""


def _with(check: Check, values: Mapping[str, object]) -> Check:
    """The check with some thresholds replaced."""
    fields = {f.name: getattr(check, f.name) for f in dataclasses.fields(check)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key.replace("-", "_"), list(fields), 1)
            hint = f", did you mean {near[0]!r}?" if near else f"; it has {', '.join(fields) or 'none'}"
            raise MisuseError(f"{check.name} has no threshold {key!r}{hint}")
    changes = {key: _like(fields[key], value, f"{check.name}.{key}") for key, value in values.items()}
    return dataclasses.replace(check, **changes) if changes else check


def _like(default: object, value: object, where: str) -> object:
    """The value in the type of the default, where that loses nothing."""
    if isinstance(default, tuple | frozenset) and isinstance(value, list | tuple):
        return type(default)(value)
    if isinstance(default, bool) or isinstance(value, bool) or not isinstance(default, int | float):
        if type(default) is type(value):
            return value
    elif isinstance(value, int | float) and not math.isnan(value):
        if isinstance(default, float):
            return float(value)
        if float(value).is_integer():
            return int(value)
    raise MisuseError(f"{where} must be of type {type(default).__name__}, as its default {default!r}; got {value!r}")


@cache
def _found() -> _Found:
    """All checks of the package and of entry points; what fails to load becomes a crash, the first of a name wins."""
    checks: dict[str, Check] = {}
    broken: list[Crash] = []
    for where, load_one in _sources():
        try:
            for kind in _subclasses(load_one()):
                check = kind()
                if not check.name:
                    raise ValueError(f"{kind.__name__} has no name")
                if type(checks.setdefault(check.name, check)) is not kind:
                    raise ValueError(f"the name {check.name!r} is taken")
        except Exception as error:  # a plugin can fail in any way, and the others must go on
            broken.append(Crash(where, f"{type(error).__name__}: {error}"))
    return _Found(tuple(checks[name] for name in sorted(checks)), tuple(broken))


def _sources() -> Iterator[tuple[str, Callable[[], object]]]:
    """What to load, built-in modules first: a label for messages, and a callable that loads it."""
    for root in map(Path, netdoctor.checks.__path__):
        for family in sorted(path for path in root.iterdir() if path.is_dir() and path.name.isidentifier()):
            for module in pkgutil.iter_modules([str(family)]):
                name = f"{netdoctor.checks.__name__}.{family.name}.{module.name}"
                yield name, partial(importlib.import_module, name)
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        yield f"entry point {point.name} = {point.value}", point.load


def _subclasses(loaded: object) -> Iterator[type[Check]]:
    """The checks that a module defines (not those it imports), or the one check that was loaded."""
    if isinstance(loaded, type) and issubclass(loaded, Check):
        yield loaded
        return
    if not isinstance(loaded, ModuleType):
        raise TypeError(f"{loaded!r} is neither a Check subclass nor a module")
    for value in vars(loaded).values():
        own = isinstance(value, type) and issubclass(value, Check) and value.__module__ == loaded.__name__
        if own and not value.__name__.startswith("_"):
            yield value
