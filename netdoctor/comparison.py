"""Two reports side by side: what was cured, what is new, what is still there, and how the losses differ."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netdoctor.codec import plain
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Recording, Series, shared
from netdoctor.report import Report

FORMAT = 1
APART = 0.01  # of the larger loss: what rounding on another machine does not reach in the first steps
Pair = tuple[Finding, Finding]


@dataclass(frozen=True, slots=True)
class Curve:
    """One loss in both runs: (first, lowest, last) each, the steps taken, and the first step at which they are apart."""

    label: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    steps: tuple[int, int]
    apart_at: int | None = None  # None: nowhere, or only the ends of the curves are known


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from one run to the other. `relieved` are symptoms of before that are now nowhere."""

    before: str
    after: str
    verdicts: tuple[str, str]
    cured: tuple[Finding, ...] = ()
    new: tuple[Finding, ...] = ()
    still: tuple[Pair, ...] = ()
    relieved: tuple[Finding, ...] = ()
    curves: tuple[Curve, ...] = field(default_factory=tuple)
    unjudged: tuple[str, ...] = ()  # cured by silence only: checks that could not tell, or did not run, the second time

    def to_json(self) -> str:
        """Strict JSON, format 1."""
        return json.dumps({"format": FORMAT} | self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists; a number that JSON lacks is its name."""
        return {
            "before": self.before,
            "after": self.after,
            "verdicts": list(self.verdicts),
            "cured": [_row(finding) for finding in self.cured],
            "new": [_row(finding) for finding in self.new],
            "still_there": [{"before": _row(old), "after": _row(new)} for old, new in self.still],
            "relieved": [_row(finding) for finding in self.relieved],
            "unjudged": list(self.unjudged),
            "curves": [_curve(curve) for curve in self.curves],
        }


def _curve(curve: Curve) -> dict[str, Any]:
    ends = {"before": plain(list(curve.before)), "after": plain(list(curve.after))}
    return {"label": curve.label, "steps": list(curve.steps), "first_lowest_last": ends, "apart_at": curve.apart_at}


def _row(finding: Finding) -> dict[str, Any]:
    at = finding.location
    where = {"module": at.module, "file": at.file, "line": at.line}
    return {"check": finding.check, "severity": finding.severity.value, "title": finding.title, "location": where}


def compare(
    before: Report, after: Report, recordings: tuple[Recording | None, Recording | None] = (None, None)
) -> Comparison:
    """Compare two reports; with both recordings, their whole loss curves. Advice is left out, ignored findings too."""
    old, new = before.at_least(Severity.WARNING), after.at_least(Severity.WARNING)
    pairs, gone, come = _matched(old, new)
    symptoms = [s for f in old for s in f.symptoms]
    left = [*new, *(s for f in new for s in f.symptoms)]
    _, relieved, _ = _matched(symptoms, left)
    told = {*after.passed, *(f.check for f in left)}
    return Comparison(
        before.target,
        after.target,
        (before.verdict, after.verdict),
        tuple(gone),
        tuple(come),
        tuple(pairs),
        tuple(relieved),
        tuple(_curves(before, after, recordings)),
        tuple(dict.fromkeys(f.check for f in gone if f.check not in told)),
    )


def _matched(old: Iterable[Finding], new: Iterable[Finding]) -> tuple[list[Pair], list[Finding], list[Finding]]:
    """Pairs of the same fault, what is only in the first, and what is only in the second.

    The same fault: the same check at the same module and source text; else at the same module; else at the same text;
    else the same check at all, for a mended script has its lines and layers elsewhere.
    """
    gone, come, pairs = list(old), list(new), []
    for key in _KEYS:
        for finding in list(gone):
            wanted = key(finding)
            twin = next((other for other in come if key(other) == wanted), None)
            if twin is not None:
                gone.remove(finding)
                come.remove(twin)
                pairs.append((finding, twin))
    return pairs, gone, come


def _by_place(finding: Finding) -> Hashable:
    return finding.check, finding.location.module, finding.location.text, os.path.basename(finding.location.file or "")


def _by_module(finding: Finding) -> Hashable:
    return finding.check, finding.location.module or object()


def _by_text(finding: Finding) -> Hashable:
    return finding.check, finding.location.text or object()


def _by_check(finding: Finding) -> Hashable:
    return finding.check


_KEYS: tuple[Callable[[Finding], Hashable], ...] = (_by_place, _by_module, _by_text, _by_check)


def _curves(before: Report, after: Report, recordings: tuple[Recording | None, Recording | None]) -> Iterable[Curve]:
    first, second = recordings
    for label, ends in before.losses.items():
        if label not in after.losses:
            continue
        one = None if first is None else first.losses.get(label)
        other = None if second is None else second.losses.get(label)
        shape = (_shape(one, ends), _shape(other, after.losses[label]))
        yield Curve(label, *shape, (before.steps, after.steps), _apart(one, other))


def _shape(series: Series | None, ends: tuple[float, float]) -> tuple[float, float, float]:
    """First, lowest and last loss; the lowest is NaN where only the ends are known."""
    values = np.array([], dtype=np.float64) if series is None else series.values
    finite = values[np.isfinite(values)]
    return float(ends[0]), float(finite.min()) if finite.size else float("nan"), float(ends[1])


def _apart(one: Series | None, other: Series | None) -> int | None:
    """The first common step at which the losses differ by more than a hundredth, or only one of them is a number."""
    if one is None or other is None:
        return None
    steps, a, b = shared(one, other)
    with np.errstate(all="ignore"):
        differ = np.abs(a - b) > APART * np.maximum(np.abs(a), np.abs(b))
    differ |= np.isfinite(a) != np.isfinite(b)
    return int(steps[differ][0]) if differ.any() else None
