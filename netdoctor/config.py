"""The settings of `[tool.netdoctor]` in a pyproject.toml, checked, with their defaults."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netdoctor.errors import MisuseError
from netdoctor.finding import Finding, Severity
from netdoctor.report import Report

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FAIL_ON = ("error", "warning", "never")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user can set once for a project. `budget` is in seconds, for all experiments of a run together."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    advice: bool = False
    fail_on: str = "warning"  # as the verdict "sick": a warning already says that training is hurt
    budget: float = 60.0
    experiments: bool = True

    def engine(self) -> dict[str, Any]:
        """The settings that `judging.Options` takes, by its names."""
        return {
            "select": self.select,
            "ignore": self.ignore,
            "thresholds": self.thresholds,
            "budget": self.budget,
            "experiments": self.experiments,
        }

    def failing(self, report: Report) -> tuple[Finding, ...]:
        """The findings that make the command line or a test fail."""
        return () if self.fail_on == "never" else report.at_least(Severity(self.fail_on))

    def changed(self, **given: Any) -> Settings:
        """These settings with those given; None means not given, `ignore` and `thresholds` add to what is there already.

        Raises MisuseError for a name or a value that is not one.
        """
        known = {name: value for name, value in given.items() if value is not None}
        read = {name: _reader(name, "the setting")(value) for name, value in known.items()}
        if "ignore" in read:
            read["ignore"] = self.ignore + read["ignore"]
        for check, limits in read.get("thresholds", {}).items():
            read["thresholds"][check] = {**self.thresholds.get(check, {}), **limits}
        if "thresholds" in read:
            read["thresholds"] = {**self.thresholds, **read["thresholds"]}
        return replace(self, **read)


def load(folder: Path) -> Settings:
    """The settings of the nearest pyproject.toml with a `[tool.netdoctor]` table, from `folder` up; else the defaults.

    Raises MisuseError, with the file's name, when that file or that table cannot be used.
    """
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        if file.is_file():
            table = _table(file)
            if table is not None:
                return _settings(table, f"{file}: [tool.netdoctor]")
    return Settings()


def _table(file: Path) -> object | None:
    """The `[tool.netdoctor]` table of one file, None when it has none."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MisuseError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both ValueErrors
        raise MisuseError(f"{file} is not TOML: {error}") from None
    tools = document.get("tool", {})
    return tools.get("netdoctor") if isinstance(tools, dict) else None


def _settings(table: object, where: str) -> Settings:
    if not isinstance(table, dict):
        raise MisuseError(f"{where} must be a table")
    named = {name.replace("-", "_"): value for name, value in table.items()}
    return Settings(**{name: _reader(name, where)(value) for name, value in named.items()})


def _reader(name: str, where: str) -> Callable[[object], Any]:
    """What checks one setting's value and brings it into shape."""
    if name not in _READERS:
        near = difflib.get_close_matches(name, _READERS, 1, 0.5)
        hint = f"did you mean {_spelled(near[0])}?" if near else f"there are {', '.join(map(_spelled, _READERS))}"
        raise MisuseError(f"{where} has no {_spelled(name)}: {hint}")

    def read(value: object) -> Any:
        try:
            return _READERS[name](value)
        except ValueError as error:
            raise MisuseError(f"{where} {_spelled(name)} must be {error}, not {value!r}") from None

    return read


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
        raise ValueError("a list of names of checks")
    return tuple(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _level(value: object) -> str:
    if value not in FAIL_ON:
        raise ValueError(" or ".join(map(repr, FAIL_ON)))
    return str(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError("a number")
    return float(value)


def _seconds(value: object) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError("a number of seconds, 0 or more")
    return number


def _thresholds(value: object) -> dict[str, dict[str, float]]:
    shape = "one table of numbers for each check"
    if not isinstance(value, dict) or not all(isinstance(limits, dict) for limits in value.values()):
        raise ValueError(shape)
    try:
        return {
            check: {name.replace("-", "_"): _number(limit) for name, limit in limits.items()}
            for check, limits in value.items()
        }
    except ValueError:
        raise ValueError(shape) from None


_READERS: dict[str, Callable[[object], Any]] = {
    "select": _names,
    "ignore": _names,
    "thresholds": _thresholds,
    "advice": _flag,
    "fail_on": _level,
    "budget": _seconds,
    "experiments": _flag,
}
