"""A comparison of two runs for a terminal."""

from __future__ import annotations

import math

from netdoctor.comparison import Comparison, Curve
from netdoctor.finding import Finding
from netdoctor.render import wording
from netdoctor.render.page import STYLES, Page


def render(result: Comparison, width: int = 80, color: bool = False, ascii_only: bool = False) -> str:
    """The text, ending with a line break: what was cured, what is new, what is still there, and the losses."""
    page = Page(width, color, ascii_only)
    names = [wording.shown_path(name) for name in (result.before, result.after)]
    page.line(("netdoctor compare", "bold"), (f" · {names[0]} → {names[1]}", "dim"), hanging=2)
    page.blank()
    page.line((_headline(result), "bold"))
    _rows(page, "Cured", result.cured, "green")
    _rows(page, "New", result.new, "red")
    if result.still:
        page.blank()
        page.line((f"Still there: {len(result.still)}", "bold yellow"))
    for old, new in result.still:
        _row(page, new)
        if old.title != new.title:
            page.line((f"    before: {wording.clean(old.title, 300)}", "dim"), hanging=12)
    _rows(page, "Symptoms that are gone with it", result.relieved, "green")
    if result.unjudged:
        page.blank()
        said = f"Not judged the second time, so perhaps not cured: {wording.listed(result.unjudged, 12)}."
        page.line((said, "yellow"), hanging=2)
    _losses(page, result.curves)
    return page.text()


def _headline(result: Comparison) -> str:
    counts = [(len(result.cured), "cured"), (len(result.new), "new"), (len(result.still), "still there")]
    found = ", ".join(f"{amount} {word}" for amount, word in counts if amount)
    return f"{found or 'No finding in either'}; {result.verdicts[0]} → {result.verdicts[1]}."


def _rows(page: Page, title: str, findings: tuple[Finding, ...], style: str) -> None:
    if not findings:
        return
    page.blank()
    page.line((f"{title}: {len(findings)}", f"bold {style}"))
    for finding in findings:
        _row(page, finding)


def _row(page: Page, finding: Finding) -> None:
    where = wording.place(finding.location)
    page.line(
        ("  ", ""),
        (finding.severity.value.upper(), STYLES[finding.severity]),
        (f"  {wording.clean(finding.title, 300)}", ""),
        (f"  {wording.clean(finding.check, 120)}{' · ' + where if where else ''}", "dim"),
        hanging=4,
    )


def _losses(page: Page, curves: tuple[Curve, ...]) -> None:
    if not curves:
        return
    page.blank()
    for curve in curves:
        page.line((f"{wording.clean(curve.label, 60)}", "bold"))
        for name, (first, lowest, last), steps in zip(
            ("before", "after"), (curve.before, curve.after), curve.steps, strict=True
        ):
            ends = f"{wording.number(first)} → {wording.number(last)} in {wording.count(steps, 'step')}"
            least = "" if math.isnan(lowest) else f", lowest {wording.number(lowest)}"
            page.line((f"  {name.ljust(6)}  ", "dim"), (ends + least, ""), hanging=10)
        if curve.apart_at is not None:
            apart = (
                f"the same up to step {curve.apart_at - 1}" if curve.apart_at else "different from the first step on"
            )
            page.line((f"  {apart}", "dim"), hanging=2)
