"""The ranked result of a diagnosis, and its JSON form (format 1)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from netdoctor.finding import Abstention, Evidence, Finding, Fix, Location, Severity, Trial

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Crash:
    """A fault of netdoctor itself, contained: `where` names the check, hook or experiment."""

    where: str
    error: str


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment that was run or could not be: verdict "passed", "failed" or "could not run"."""

    name: str
    verdict: str
    says: str


@dataclass(frozen=True, slots=True)
class Report:
    """Ranked findings with their symptoms under them, and everything a reader needs to judge what was (not) looked at."""

    target: str
    verdict: str  # "sick", "healthy", "not observed"
    steps: int
    findings: tuple[Finding, ...] = ()
    ignored: tuple[Finding, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    abstentions: tuple[Abstention, ...] = ()
    crashes: tuple[Crash, ...] = ()
    passed: tuple[str, ...] = ()  # checks that looked and found nothing
    blind_spots: tuple[str, ...] = ()
    netdoctor: str = ""
    torch: str = ""
    ended: str = "finished"
    observing_s: float = 0.0
    experiments_s: float = 0.0
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)  # label → (first, last)

    @property
    def healthy(self) -> bool:
        """True when there is no error and no warning."""
        return not any(f.severity is not Severity.ADVICE for f in self.findings)

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of this severity or a graver one."""
        return tuple(f for f in self.findings if f.severity.rank <= severity.rank)

    def _repr_html_(self) -> str:
        """The findings in short, for a notebook; `watch` shows the whole page with its figures there."""
        rows = "".join(map(_row, self.findings))
        said = f"{escape(self.verdict)}, {self.steps} steps, {len(self.passed)} checks found nothing wrong"
        return f"<p><strong>netdoctor</strong>: {said}</p><ol>{rows}</ol>"

    def to_json(self) -> str:
        """Strict JSON, format 1: NaN and infinities become the strings "NaN", "Infinity" and "-Infinity"."""
        return json.dumps(_strict(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries and lists, as documented in the README."""
        return {
            "format": FORMAT,
            "netdoctor": self.netdoctor,
            "torch": self.torch,
            "target": self.target,
            "verdict": self.verdict,
            "ended": self.ended,
            "steps": self.steps,
            "losses": {label: list(ends) for label, ends in self.losses.items()},
            "findings": [_finding(f, rank) for rank, f in enumerate(self.findings, 1)],
            "ignored": [_finding(f, rank) for rank, f in enumerate(self.ignored, 1)],
            "experiments": [{"name": e.name, "verdict": e.verdict, "says": e.says} for e in self.experiments],
            "abstentions": [{"check": a.check, "reason": a.reason} for a in self.abstentions],
            "crashes": [{"where": c.where, "error": c.error} for c in self.crashes],
            "passed": list(self.passed),
            "blind_spots": list(self.blind_spots),
            "cost": {"observing_s": self.observing_s, "experiments_s": self.experiments_s},
        }


def _row(finding: Finding) -> str:
    at = finding.location
    place = " · ".join(filter(None, (f"{at.file}:{at.line}" if at.file else "", at.module)))
    fixes = "".join(f"<p>{escape(fix.says)}</p><pre>{escape(fix.code)}</pre>" for fix in finding.fixes[:1])
    head = f"<strong>{escape(finding.title)}</strong> ({finding.severity.value}, {escape(finding.check)})"
    return f"<li>{head}<br>{escape(place)}{fixes}</li>"


def _finding(finding: Finding, rank: int) -> dict[str, Any]:
    return {
        "rank": rank,
        "check": finding.check,
        "severity": finding.severity.value,
        "certainty": finding.certainty.value,
        "title": finding.title,
        "explanation": finding.explanation,
        "location": _location(finding.location),
        "first_step": finding.first_step,
        "places": list(finding.places),
        "share": finding.share,
        "evidence": [_evidence(e) for e in finding.evidence],
        "fixes": [_fix(f) for f in finding.fixes],
        "symptoms": [
            {"check": s.check, "severity": s.severity.value, "title": s.title, "location": _location(s.location)}
            for s in finding.symptoms
        ],
    }


def _location(location: Location) -> dict[str, Any]:
    return {
        "module": location.module,
        "operation": location.operation,
        "file": location.file,
        "line": location.line,
        "text": location.text,
        "step": location.step,
        "samples": list(location.samples),
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    site = evidence.site
    return {
        "quantity": evidence.quantity,
        "site": "" if site is None else f"{site.parameter or site.module or site.layer} {site.role.value}",
        "stat": None if evidence.stat is None else evidence.stat.value,
        "measured": evidence.measured,
        "relation": evidence.relation,
        "limit": evidence.limit,
        "unit": evidence.unit,
    }


def _fix(fix: Fix) -> dict[str, Any]:
    return {
        "treatment": fix.treatment,
        "says": fix.says,
        "code": fix.code,
        "reach": fix.reach.value,
        "trial": None if fix.trial is None else _trial(fix.trial),
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "verdict": trial.verdict.value,
        "control": list(trial.control),
        "treated": list(trial.treated),
        "steps": trial.steps,
        "seconds": trial.seconds,
        "says": trial.says,
        "side_effects": list(trial.side_effects),
        "measured": None if trial.measured is None else asdict(trial.measured),
    }


def _strict(value: Any) -> Any:
    """Replace what JSON has no number for by its name, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
