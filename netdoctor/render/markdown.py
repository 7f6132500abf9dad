"""The report as GitHub Markdown, fit for a comment on a pull request."""

from __future__ import annotations

import re

from netdoctor.finding import Finding, Fix, Severity
from netdoctor.render import wording
from netdoctor.report import Report

LONGEST = 60_000  # characters; GitHub refuses comments beyond 65,536
MARKS = {Severity.ERROR: "🔴", Severity.WARNING: "🟠", Severity.ADVICE: "🔵"}
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$@]|^[-+#=]|(?<=^\d)[.)])")


def render(report: Report, *, advice: bool = False) -> str:
    """Markdown text: root causes in full, everything else folded. Text of the user's program is escaped."""
    target = _code(wording.shown_path(report.target))
    parts = [f"### netdoctor · {target}", f"**{_text(wording.headline(report))}**"]
    if wording.ended(report):
        parts.append(_text(wording.ended(report)))
    size = 0
    findings = wording.shown(report, advice)
    for rank, finding in enumerate(findings, 1):
        text = _finding(finding, rank)
        size += len(text)
        if size > LONGEST:
            parts.append(
                f"… and {wording.count(len(findings) - rank + 1, 'more finding')}; the HTML report has them all."
            )
            break
        parts.append(text)
    parts.append(_rest(report))
    return "\n\n".join(parts) + "\n"


def _finding(finding: Finding, rank: int) -> str:
    lines = [
        f"#### {rank}. {MARKS[finding.severity]} {_text(finding.title, 300)}",
        f"{_code(finding.check)} · {finding.severity.value} · {wording.certainty(finding)}",
        _text(finding.explanation),
        "\n".join(f"- {_text(wording.evidence_sentence(evidence))}" for evidence in finding.evidence[:8]),
    ]
    where = wording.place(finding.location)
    source = wording.clean(finding.location.text, 300)
    lines.append(f"**Where:** {_text(where)}" + (f" — {_code(source)}" if source else "") if where else "")
    lines += [_fix(fix) for fix in finding.fixes[:3]]
    if finding.symptoms:
        symptoms = "\n".join(f"- {_text(symptom.title, 300)}" for symptom in finding.symptoms[:20])
        summary = f"{wording.count(len(finding.symptoms), 'symptom')} of this"
        lines.append(_folded(summary, symptoms))
    return "\n\n".join(line for line in lines if line)


def _fix(fix: Fix) -> str:
    lines = [f"**What to do:** {_text(fix.says)}"]
    if fix.code:
        lines.append(_block(wording.clean_code(fix.code)))
    if fix.trial is not None:
        lines.append(f"{_text(wording.trial_sentence(fix.trial))} ({wording.trial_verdict(fix.trial)})")
    return "\n\n".join(lines)


def _rest(report: Report) -> str:
    lines = [f"- Found well: {wording.count(len(report.passed), 'check')}"]
    lines += [f"- Experiment {_code(e.name)}: {_text(e.verdict)}. {_text(e.says, 300)}" for e in report.experiments]
    lines += [f"- No verdict: {_text(reason, 300)} ({len(names)})" for reason, names in wording.by_reason(report)[:10]]
    lines += [f"- Not seen: {_text(spot, 300)}" for spot in report.blind_spots[:10]]
    lines += [f"- A fault of netdoctor's own in {_code(c.where)}: {_text(c.error, 300)}" for c in report.crashes[:5]]
    lines += [f"- Cost: {wording.cost(report)}"]
    return _folded("What was looked at, and what was not", "\n".join(lines))


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _text(text: str, limit: int = wording.TEXT_LIMIT) -> str:
    """One line in which no character means anything to Markdown; "@" has no effect, so that nobody is notified."""
    return _SPECIAL.sub(r"\\\1", wording.clean(text, limit)).replace("\\@", "@\u200b")


def _fence(text: str, least: int) -> str:
    """A row of backticks longer than any inside of the text."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _code(text: str, limit: int = wording.NAME_LIMIT) -> str:
    text = wording.clean(text, limit) or " "
    fence = _fence(text, 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _block(code: str) -> str:
    fence = _fence(code, 3)
    return f"{fence}python\n{code}\n{fence}"
