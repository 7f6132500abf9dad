"""The report for a terminal: the first screen says what, why, where, and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TextIO

from netdoctor.finding import Finding, Fix, Severity, Verdict
from netdoctor.render import titles, wording
from netdoctor.render.page import STYLES, Page, wants_color
from netdoctor.report import Report

PROSE = 1200  # characters of an explanation: more would push the rest from the first screen
DETAILED = 5  # findings in full; those ranked lower in one line each, unless verbose
TRIAL_STYLES = {Verdict.CURED: "green", Verdict.EASED: "green", Verdict.WORSE: "red"}


def print_report(
    report: Report,
    file: TextIO,
    *,
    width: int | None = None,
    color: bool | None = None,
    verbose: bool = False,
    advice: bool = False,
) -> None:
    """Write the report to a stream as it can show it: its width and encoding are asked for; NO_COLOR, FORCE_COLOR hold.

    Colours are on only for a terminal unless `color` says otherwise; what cannot be encoded is written in plain ASCII.
    """
    print_text(
        lambda width, color, plain: render(
            report, width=width, color=color, verbose=verbose, advice=advice, ascii_only=plain
        ),
        file,
        width=width,
        color=color,
    )


def print_text(
    draw: Callable[[int, bool, bool], str], file: TextIO, *, width: int | None = None, color: bool | None = None
) -> None:
    """Write what `draw(width, color, ascii_only)` gives for the stream, with the care of `print_report`."""
    color = wants_color(file) if color is None else color
    if width is None:
        width = shutil.get_terminal_size().columns if file.isatty() else 100
    text = draw(width, color, False)
    try:
        text.encode(getattr(file, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = draw(width, color, True)
    file.write(text)
    file.flush()


def render(
    report: Report,
    *,
    width: int | None = None,
    color: bool | None = None,
    verbose: bool = False,
    advice: bool = False,
    ascii_only: bool = False,
) -> str:
    """The report as text that ends with a line break. `width` is in columns (None: 80); colours only if `color`."""
    page = Page(width or 80, bool(color), ascii_only)
    _head(page, report)
    findings = wording.shown(report, advice)
    for rank, finding in enumerate(findings, 1):
        if rank <= DETAILED or verbose:
            _finding(page, finding, rank, verbose)
    if not verbose:
        _lower_ranked(page, findings[DETAILED:])
    _summary(page, report, verbose, advice)
    return page.text()


def _head(page: Page, report: Report) -> None:
    losses = [
        f"{wording.clean(label, 60)} {wording.number(first)} → {wording.number(last)}"
        for label, (first, last) in list(report.losses.items())[:3]
    ]
    name = f"netdoctor {report.netdoctor}".rstrip()
    facts = [wording.shown_path(report.target), wording.count(report.steps, "step"), *losses]
    page.line((name, "bold"), (" · " + " · ".join(fact for fact in facts if fact), "dim"), hanging=2)
    page.blank()
    style = "bold green" if report.verdict == "healthy" else "bold"
    page.line((wording.headline(report), style))
    ended = wording.ended(report)
    if ended:
        page.line((ended, "yellow"))


def _finding(page: Page, finding: Finding, rank: int, verbose: bool) -> None:
    page.blank()
    page.line(
        (f"{rank} ", "bold"),
        (finding.severity.value.upper(), STYLES[finding.severity]),
        (f"  {wording.clean(finding.title, 300)}", "bold"),
        hanging=page.margin,
    )
    page.row("", (f"{wording.clean(finding.check, wording.NAME_LIMIT)} · {wording.certainty(finding)}", "dim"))
    _why(page, finding, verbose)
    _where(page, finding, verbose)
    for index, fix in enumerate(finding.fixes if verbose else finding.fixes[:2]):
        _fix(page, fix, "do" if index == 0 else "or")
    _symptoms(page, finding, verbose)


def _why(page: Page, finding: Finding, verbose: bool) -> None:
    labels = iter(["why"])
    if finding.explanation:
        page.row(next(labels, ""), (wording.clean(finding.explanation, PROSE), ""))
    for evidence in finding.evidence if verbose else finding.evidence[:4]:
        page.row(next(labels, ""), ("· ", "dim"), (wording.evidence_sentence(evidence), ""))


def _where(page: Page, finding: Finding, verbose: bool) -> None:
    location = finding.location
    known = wording.place(location)
    if known:
        page.row("where", (known, "bold" if location.file else ""))
    if location.text:
        mark = f"{location.line} │ " if location.line else "│ "
        page.row("", (mark, "dim"), (wording.clean(location.text, 300), "cyan"), indent=2)
    others = [name for name in finding.places if name != location.module]
    if others:
        most = len(others) if verbose else 6
        label = "also in" if wording.model_place(location) else "in"
        label += " layers" if len(others) > 1 and all(map(str.isdigit, others)) else ""
        page.row("" if known else "where", (f"{label} {wording.listed(others, most)}", "dim"))


def _fix(page: Page, fix: Fix, label: str) -> None:
    reach = f"  ({fix.reach.value})" if fix.reach.value != "text only" else ""
    page.row(label, (wording.clean(fix.says, PROSE), ""), (reach, "dim"))
    if fix.code:
        page.code(fix.code)
    if fix.trial is not None:
        said = f"{wording.trial_sentence(fix.trial)}  ({wording.trial_verdict(fix.trial)})"
        page.row("", (said, TRIAL_STYLES.get(fix.trial.verdict, "dim")))


def _symptoms(page: Page, finding: Finding, verbose: bool) -> None:
    most = len(finding.symptoms) if verbose else 6
    for index, symptom in enumerate(finding.symptoms[:most]):
        where = wording.model_place(symptom.location) or wording.source_place(symptom.location)
        tail = f"  {where}" if where and where not in symptom.title else ""
        parts = (("· ", "dim"), (wording.clean(symptom.title, 300), ""), (tail, "dim"))
        page.row("causes" if index == 0 else "", *parts)
    if len(finding.symptoms) > most:
        page.row("", (f"· and {len(finding.symptoms) - most} more", "dim"))


def _lower_ranked(page: Page, findings: tuple[Finding, ...]) -> None:
    if not findings:
        return
    page.blank()
    page.line((f"{wording.count(len(findings), 'more finding')}, mend the ones above first:", "dim"))
    for rank, finding in enumerate(findings, DETAILED + 1):
        where = wording.place(finding.location)
        page.line(
            (f"{rank} ", "bold"),
            (finding.severity.value.upper(), STYLES[finding.severity]),
            (f"  {wording.clean(finding.title, 300)}", ""),
            (f"  {where}" if where else "", "dim"),
            hanging=2,
        )


def _summary(page: Page, report: Report, verbose: bool, advice: bool) -> None:
    page.blank()
    if report.passed:
        said = f"Looked at and found well: {wording.count(len(report.passed), 'check')}"
        page.line((said, "green"), (f"{_names(report, verbose)}.", "dim"), hanging=2)
    hidden = 0 if advice else len(report.findings) - len(report.at_least(Severity.WARNING))
    if hidden:
        page.line(
            (
                f"Advice: {wording.count(hidden, 'remark')} hidden, --advice shows {'it' if hidden == 1 else 'them'}.",
                "",
            ),
            hanging=2,
        )
    if report.ignored:
        names = wording.listed(dict.fromkeys(f.check for f in report.ignored))
        page.line((f"Ignored, as asked: {wording.count(len(report.ignored), 'finding')} ({names}).", ""), hanging=2)
    _experiments(page, report, verbose)
    _not_looked_at(page, report, verbose)
    for crash in report.crashes:
        said = f"A fault of netdoctor's own in {wording.clean(crash.where, 120)}: {wording.clean(crash.error, 300)}"
        page.line((f"{said}. The rest of the report stands.", "yellow"), hanging=2)
    page.line((f"Cost: {wording.cost(report)}.", "dim"), hanging=2)


def _experiments(page: Page, report: Report, verbose: bool) -> None:
    """What failed, and the first of all, in full; the others by name, unless verbose."""
    told = [e for at, e in enumerate(report.experiments) if verbose or at == 0 or e.verdict == "failed"]
    for experiment in told:
        style = {"failed": "yellow", "passed": "green"}.get(experiment.verdict, "dim")
        said = f" ({wording.clean(experiment.says, 300)})" if experiment.says else ""
        name = wording.clean(titles.of_experiment(experiment.name), wording.NAME_LIMIT)
        page.line(("On a copy, ", ""), (f"{name}: {experiment.verdict}", style), (said, "dim"), hanging=2)
    rest = [e for e in report.experiments if e not in told]
    for verdict in dict.fromkeys(e.verdict for e in rest):
        names = wording.listed(dict.fromkeys(titles.of_group(e.name) for e in rest if e.verdict == verdict), 5)
        page.line((f"Other experiments on a copy that {verdict}: ", ""), (f"{names}.", "dim"), hanging=2)


def _names(report: Report, verbose: bool) -> str:
    if not verbose and not report.healthy:
        return ""
    return f" ({wording.listed(report.passed, len(report.passed) if verbose else 8)})"


def _not_looked_at(page: Page, report: Report, verbose: bool) -> None:
    reasons = wording.by_reason(report)
    most = len(reasons) if verbose else 3
    if reasons and verbose:
        page.line((f"No verdict from {wording.count(len(report.abstentions), 'check')}:", ""))
        for reason, names in reasons:
            page.line((f"  · {reason}: ", ""), (wording.listed(names, len(names)), "dim"), hanging=4)
    elif reasons:
        said = "; ".join(f"{wording.clean(reason, 120)} ({len(names)})" for reason, names in reasons[:most])
        rest = f"; {wording.count(len(reasons) - most, 'other reason')}" if len(reasons) > most else ""
        page.line(
            (f"No verdict from {wording.count(len(report.abstentions), 'check')}: ", ""),
            (f"{said}{rest}.", "dim"),
            hanging=2,
        )
    spots = [wording.clean(spot, 300) for spot in report.blind_spots]
    most = len(spots) if verbose else 3
    rest = f" and {len(spots) - most} more" if len(spots) > most else ""
    if spots:
        page.line(("Not seen: ", ""), (f"{'; '.join(spots[:most])}{rest}.", "dim"), hanging=2)
