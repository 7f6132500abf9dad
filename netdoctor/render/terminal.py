"""The report for a terminal: the first screen says what, why, where, and what to do."""

from __future__ import annotations

import io
import os
import shutil
import unicodedata
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, detect_legacy_windows
from rich.text import Text

from netdoctor.finding import Finding, Fix, Severity, Verdict
from netdoctor.render import wording
from netdoctor.report import Report

WIDEST = 116  # longer lines of prose are hard to read, however wide the window is
NARROWEST = 24  # below, nothing can be laid out; the terminal wraps by itself
PROSE = 1200  # characters of an explanation: more would push the rest from the first screen
DETAILED = 5  # findings in full; those ranked lower in one line each, unless verbose
STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.ADVICE: "bold blue"}
TRIAL_STYLES = {Verdict.CURED: "green", Verdict.EASED: "green", Verdict.WORSE: "red"}
_ASCII = str.maketrans(
    {
        "→": "->",
        "·": "-",
        "×": "x",
        "≥": ">=",
        "≤": "<=",
        "≠": "!=",
        "≈": "~",
        "…": "...",
        "∞": "inf",
        "–": "-",
        "—": "-",
    }
    | {
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "−": "-",
        "√": "sqrt",
        "│": "|",
        "±": "+-",
        "≪": "<<",
        "≫": ">>",
        "∂": "d",
    }
)


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
    color = _wants_color(file) if color is None else color
    if width is None:
        width = shutil.get_terminal_size().columns if file.isatty() else 100
    text = render(report, width=width, color=color, verbose=verbose, advice=advice)
    try:
        text.encode(getattr(file, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = render(report, width=width, color=color, verbose=verbose, advice=advice, ascii_only=True)
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
    page = _Page(max(NARROWEST, min(width or 80, WIDEST)), bool(color), ascii_only)
    _head(page, report)
    findings = wording.shown(report, advice)
    for rank, finding in enumerate(findings, 1):
        if rank <= DETAILED or verbose:
            _finding(page, finding, rank, verbose)
    if not verbose:
        _lower_ranked(page, findings[DETAILED:])
    _summary(page, report, verbose, advice)
    return page.text()


def _wants_color(file: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in {"", "0"}:
        return True
    return file.isatty() and os.environ.get("TERM") != "dumb" and not detect_legacy_windows()


class _Page:
    """Collects lines that are already wrapped, so that hanging indents and pasteable code are under our own control."""

    def __init__(self, width: int, color: bool, ascii_only: bool) -> None:
        self.width, self.ascii_only = width, ascii_only
        self.margin = 9 if width >= 60 else 2
        self._console = Console(
            file=io.StringIO(),
            width=width,
            force_terminal=color,
            color_system="standard" if color else None,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
            _environ={},
        )

    def plain(self, text: str) -> str:
        """The text as the stream can show it."""
        if not self.ascii_only or text.isascii():
            return text
        text = unicodedata.normalize("NFKD", text.translate(_ASCII))
        text = "".join(c for c in text if not unicodedata.combining(c))
        return text.encode("ascii", "backslashreplace").decode("ascii")

    def blank(self) -> None:
        """An empty line."""
        self._console.print()

    def line(self, *parts: tuple[str, str], hanging: int = 0) -> None:
        """(text, style) pieces on one line, wrapped with `hanging` columns before all lines but the first."""
        self._wrapped(self._styled(parts), Text(), " " * hanging)

    def row(self, label: str, *parts: tuple[str, str], indent: int = 0) -> None:
        """A label in the margin, and beside it the pieces, wrapped; in narrow windows the label stands in line."""
        if self.margin < len(label) + 3:
            parts = ((f"{label}: ", "dim"), *parts) if label else parts
            first = " " * (self.margin + indent)
            self._wrapped(self._styled(parts), Text(first), first)
            return
        first = f"  {label}".ljust(self.margin) + " " * indent
        self._wrapped(self._styled(parts), Text(first, "dim"), " " * (self.margin + indent))

    def code(self, code: str, style: str = "cyan") -> None:
        """Lines that can be copied as they stand: indented, never wrapped, without a border."""
        for line in wording.clean_code(code).splitlines():
            text = Text(" " * (self.margin + 2) + self.plain(line), style if line.strip() else "")
            text.rstrip()
            self._console.print(text, soft_wrap=True)

    def text(self) -> str:
        """All lines so far."""
        written = self._console.file
        assert isinstance(written, io.StringIO)
        return written.getvalue().strip("\n") + "\n"

    def _styled(self, parts: Iterable[tuple[str, str]]) -> Text:
        return Text.assemble(*((self.plain(text), style) for text, style in parts))

    def _wrapped(self, text: Text, first: Text, other: str) -> None:
        room = max(8, self.width - max(len(first), len(other)))
        for number, line in enumerate(text.wrap(self._console, room, overflow="fold")):
            line.rstrip()
            self._console.print(Text.assemble(Text(other) if number else first, line), soft_wrap=True)


def _head(page: _Page, report: Report) -> None:
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
    if report.ended != "finished":
        page.line((f"The script did not finish by itself: {wording.clean(report.ended, 300)}.", "yellow"))


def _finding(page: _Page, finding: Finding, rank: int, verbose: bool) -> None:
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


def _why(page: _Page, finding: Finding, verbose: bool) -> None:
    labels = iter(["why"])
    if finding.explanation:
        page.row(next(labels, ""), (wording.clean(finding.explanation, PROSE), ""))
    for evidence in finding.evidence if verbose else finding.evidence[:4]:
        page.row(next(labels, ""), ("· ", "dim"), (wording.evidence_sentence(evidence), ""))


def _where(page: _Page, finding: Finding, verbose: bool) -> None:
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
        label = "also in" if known else "in"
        page.row("" if known else "where", (f"{label} {wording.listed(others, most)}", "dim"))


def _fix(page: _Page, fix: Fix, label: str) -> None:
    reach = f"  ({fix.reach.value})" if fix.reach.value != "text only" else ""
    page.row(label, (wording.clean(fix.says, PROSE), ""), (reach, "dim"))
    if fix.code:
        page.code(fix.code)
    if fix.trial is not None:
        said = f"{wording.trial_sentence(fix.trial)}  ({wording.trial_verdict(fix.trial)})"
        page.row("", (said, TRIAL_STYLES.get(fix.trial.verdict, "dim")))


def _symptoms(page: _Page, finding: Finding, verbose: bool) -> None:
    most = len(finding.symptoms) if verbose else 6
    for index, symptom in enumerate(finding.symptoms[:most]):
        where = wording.model_place(symptom.location) or wording.source_place(symptom.location)
        tail = f"  {where}" if where and where not in symptom.title else ""
        parts = (("· ", "dim"), (wording.clean(symptom.title, 300), ""), (tail, "dim"))
        page.row("causes" if index == 0 else "", *parts)
    if len(finding.symptoms) > most:
        page.row("", (f"· and {len(finding.symptoms) - most} more", "dim"))


def _lower_ranked(page: _Page, findings: tuple[Finding, ...]) -> None:
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


def _summary(page: _Page, report: Report, verbose: bool, advice: bool) -> None:
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
    for experiment in report.experiments:
        style = {"failed": "yellow", "passed": "green"}.get(experiment.verdict, "dim")
        said = f" ({wording.clean(experiment.says, 300)})" if experiment.says else ""
        name = wording.clean(experiment.name, wording.NAME_LIMIT)
        page.line(("Experiment ", ""), (f"{name}: {experiment.verdict}", style), (said, "dim"), hanging=2)
    _not_looked_at(page, report, verbose)
    for crash in report.crashes:
        said = f"A fault of netdoctor's own in {wording.clean(crash.where, 120)}: {wording.clean(crash.error, 300)}"
        page.line((f"{said}. The rest of the report stands.", "yellow"), hanging=2)
    page.line((f"Cost: {wording.cost(report)}.", "dim"), hanging=2)


def _names(report: Report, verbose: bool) -> str:
    if not verbose and not report.healthy:
        return ""
    return f" ({wording.listed(report.passed, len(report.passed) if verbose else 8)})"


def _not_looked_at(page: _Page, report: Report, verbose: bool) -> None:
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
