"""What a diagnosis is asked for, and judging a recording, or a saved one again. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from netdoctor import catalogue, diagnosis, ranking
from netdoctor.check import Check
from netdoctor.finding import Finding
from netdoctor.recording import Recording
from netdoctor.recordingfile import Saved, load
from netdoctor.report import Report


@dataclass(frozen=True)
class Options:
    """What a diagnosis is asked for. `budget` is in seconds, for all experiments together. `exact`: every output of a layer is
    read in every step, which finds a NaN or Inf that never reaches the loss or a gradient."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    budget: float = 60.0
    experiments: bool = True
    steps: int | None = None
    exact: bool = False
    target: str = ""
    progress: bool = False


def diagnose(recording: Recording | str | os.PathLike[str], options: Options | None = None) -> Report:
    """Judge a recording, or a file that `netdoctor run --save` wrote, with the checks that the options choose.

    What experiments showed at the time is in the recording; trials of fixes are taken from the report in the file.
    Raises MisuseError where the file is not a recording, or the options name a check that there is not.
    """
    saved = Saved(recording) if isinstance(recording, Recording) else load(recording)
    return judged(saved, options or Options())


def judged(saved: Saved, options: Options) -> Report:
    """Judge what a file held: its recording now, with the trials of the report in it."""
    checks = catalogue.load(options.select, options.ignore, options.thresholds)
    report = diagnosis.diagnose(saved.recording, checks, options.ignore, select=options.select)
    return report if saved.report is None else with_trials(report, saved.report, checks)


def with_trials(report: Report, before: Report, checks: Sequence[Check]) -> Report:
    """The report with the tried fixes of an earlier one on the same recording, ranked with what they proved."""
    tried = {_identity(f): f for f in (*before.findings, *before.ignored) if any(fix.trial for fix in f.fixes)}

    def adopted(finding: Finding) -> Finding:
        known = tried.get(_identity(finding))
        return finding if known is None else replace(finding, fixes=known.fixes, certainty=known.certainty)

    findings = ranking.rank(map(adopted, report.findings), checks)
    return replace(report, findings=findings, experiments_s=before.experiments_s)


def _identity(finding: Finding) -> tuple[object, ...]:
    location = finding.location
    return finding.check, location.module, location.operation, location.file, location.line
