"""How every renderer writes names, numbers, places, evidence and trials, so that all say the same.

Layer names, paths and source lines come from the user's program and may hold anything: `clean` makes them harmless
before a renderer escapes them for its own format.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from netdoctor.finding import Certainty, Evidence, Finding, Location, Severity, Trial, Verdict
from netdoctor.recording import spoken
from netdoctor.report import Report

NAME_LIMIT = 120  # characters of a layer name or path: longer ones fill a screen and say no more
TEXT_LIMIT = 2000  # characters of a title, explanation or error message
CODE_LINES = 80  # lines of a fix: what is longer belongs into a file
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?")
_RELATIONS = {">": "above", "≥": "at or above", "<": "below", "≤": "at or below", "=": "exactly at"}
_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Cn"})  # control, format (also bidirectional overrides), surrogate, unassigned


def clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """One line without terminal escapes, control or direction characters; a long text is cut in the middle by "…"."""
    text = _shortened(text, 4 * limit)  # before the work per character: a text may be megabytes long
    bare = "".join(_harmless(character) for character in _ESCAPES.sub("", text))
    return _shortened(" ".join(bare.split()), limit)


def clean_code(code: str, limit: int = 1000) -> str:
    """Code with its line breaks and indentation kept, otherwise as `clean`; `limit` is per line."""
    lines = _ESCAPES.sub("", code[: CODE_LINES * limit]).expandtabs(4).strip("\n").splitlines()
    kept = [_shortened("".join(map(_harmless, line)).rstrip(), limit) for line in lines[:CODE_LINES]]
    return "\n".join([*kept, "# …"] if len(lines) > CODE_LINES else kept)


def _harmless(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    if character.isspace():
        return " "
    return "" if unicodedata.category(character) in _HARMFUL else character


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = 2 * limit // 3
    return f"{text[:head]}…{text[len(text) - (limit - head - 1) :]}"


def number(value: float) -> str:
    """Three significant digits at most: "2.31", "0.004", "1024", "2.3e4", "NaN", "∞"."""
    value = float(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    if value == 0 or (value.is_integer() and size < 1e5):
        return str(int(value))
    if 1e-3 <= size < 1e5:
        return f"{value:.0f}" if size >= 100 else f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """ "1 check", "3 checks"."""
    return f"{amount} {noun if amount == 1 else plural or noun + 's'}"


def seconds(value: float) -> str:
    """A duration to two digits: "0.4 s", "12 s", "3 min"."""
    if value >= 120:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 9.95 else f"{value:.1f} s"


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names with commas; beyond `most` the rest is counted."""
    names = [clean(name, NAME_LIMIT) for name in names]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def shown_path(file: str) -> str:
    """A path relative to the current directory where it lies beneath it, else as it is."""
    if os.path.isabs(file):
        here = os.getcwd()
        if file.startswith(here + os.sep):
            file = file[len(here) + 1 :]
    return clean(file, NAME_LIMIT)


def source_place(location: Location) -> str:
    """ "train.py:14", "train.py", or "" where the file is not known."""
    if not location.file:
        return ""
    return shown_path(location.file) + (f":{location.line}" if location.line else "")


def model_place(location: Location) -> str:
    """The module and operation, as "body.3 (relu)"; "" where neither is known."""
    module = spoken(clean(location.module or "", NAME_LIMIT))
    operation = clean(location.operation or "", NAME_LIMIT)
    if module and operation:
        return module if f"({operation})" in module else f"{module} ({operation})"
    return module or operation


def place(location: Location) -> str:
    """Everything that is known of where, on one line."""
    parts = [source_place(location), model_place(location)]
    if location.step is not None:
        parts.append(f"step {location.step}")
    if location.samples:
        noun = "sample" if len(location.samples) == 1 else "samples"
        parts.append(f"{noun} {listed(map(str, location.samples), 8)} of the batch")
    return " · ".join(part for part in parts if part)


def with_unit(value: float, unit: str) -> str:
    """ "12 units", "53 %"; a value without unit stands alone."""
    return f"{number(value)} {clean(unit, 40)}".rstrip()


def evidence_sentence(evidence: Evidence) -> str:
    """ "growth over depth: 2.3e4, above the limit of 1000"."""
    quantity = clean(evidence.quantity, 200)
    unit = evidence.unit
    measured = with_unit(evidence.measured, unit if len(unit) <= 2 else "")
    relation = _RELATIONS.get(evidence.relation, clean(evidence.relation, 8))
    return f"{quantity}: {measured}, {relation} the limit of {with_unit(evidence.limit, unit)}"


def course(losses: Sequence[float]) -> str:
    """A loss from its start to its end: "2.31 → 0.004", or "2.31 → NaN at step 2" where it stopped being a number."""
    if not losses:
        return "no loss"
    broken = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if broken is not None:
        start = f"{number(losses[0])} → " if broken > 0 else ""
        return f"{start}{number(losses[broken])} at step {broken}"
    return f"{number(losses[0])} → {number(losses[-1])}"


def trial_sentence(trial: Trial) -> str:
    """ "with it: 2.31 → 0.004 in 100 steps; without it: 2.31 → NaN at step 2", or what was measured in place of the loss."""
    if trial.measured is not None:
        found = trial.measured
        with_it, without = (with_unit(value, found.unit) for value in (found.treated, found.control))
        return f"{clean(found.quantity, 200)}: with it {with_it}, without it {without}"
    if not trial.treated and not trial.control:
        return clean(trial.says) or trial.verdict.value
    finite = all(map(math.isfinite, trial.treated))
    steps = f" in {count(trial.steps, 'step')}" if trial.steps and finite else ""
    return f"with it: {course(trial.treated)}{steps}; without it: {course(trial.control)}"


def trial_verdict(trial: Trial) -> str:
    """What the trial showed, in a few words."""
    return {
        Verdict.CURED: "tried on a copy: cured",
        Verdict.EASED: "tried on a copy: eased",
        Verdict.NO_EFFECT: "tried on a copy: no effect",
        Verdict.WORSE: "tried on a copy: worse",
        Verdict.NOT_REPRODUCED: "tried on a copy: the fault did not show there, so this proves nothing",
        Verdict.COULD_NOT_RUN: "could not be tried",
    }[trial.verdict]


def certainty(finding: Finding) -> str:
    """How the conclusion was reached, for a reader."""
    return {
        Certainty.PROVEN: "proven by trial",
        Certainty.MEASURED: "measured",
        Certainty.INFERRED: "inferred from what was measured",
    }[finding.certainty]


def shown(report: Report, advice: bool) -> tuple[Finding, ...]:
    """The findings to show: advice only where it was asked for."""
    return report.findings if advice else report.at_least(Severity.WARNING)


def opening(report: Report) -> str:
    """The verdict in a few words: "2 root causes found"."""
    if report.verdict == "not observed":
        return "No training could be observed, so there is no verdict"
    grave = report.at_least(Severity.WARNING)
    if not grave:
        blocked = sum(experiment.verdict == "could not run" for experiment in report.experiments)
        if blocked > len(report.experiments) / 2:  # "healthy" would promise more than was looked at
            left = f"{blocked} of {count(len(report.experiments), 'experiment')} could not run"
            return f"Nothing wrong was found in {count(report.steps, 'step')}, but {left}"
        return f"Healthy: nothing wrong was found in {count(report.steps, 'step')}"
    return f"{count(len(grave), 'root cause')} found"


def tally(report: Report) -> str:
    """What the root causes are and how much they explain: "1 error, 1 warning; 3 symptoms explained", or ""."""
    grave = report.at_least(Severity.WARNING)
    errors = sum(f.severity is Severity.ERROR for f in grave)
    symptoms = sum(len(f.symptoms) for f in grave)
    kinds = [count(errors, "error")] if errors else []
    kinds += [count(len(grave) - errors, "warning")] if errors < len(grave) else []
    return ", ".join(kinds) + (f"; {count(symptoms, 'symptom')} explained" if symptoms else "")


def ended(report: Report) -> str:
    """How a run ended that did not end by itself, as a sentence; "" for one that did."""
    if report.ended == "finished":
        return ""
    said = clean(report.ended, 300)
    return (
        f"It was {said}, as asked."
        if said.startswith("stopped after")
        else f"The script did not finish by itself: {said.rstrip('.')}."
    )


def headline(report: Report) -> str:
    """The one sentence that opens every report."""
    detail = tally(report)
    return f"{opening(report)}: {detail}." if detail else f"{opening(report)}."


def by_reason(report: Report) -> list[tuple[str, list[str]]]:
    """Abstentions as (reason, names of the checks), the most frequent reason first."""
    amounts = Counter(clean(a.reason, 400) for a in report.abstentions)
    return [
        (reason, [clean(a.check, NAME_LIMIT) for a in report.abstentions if clean(a.reason, 400) == reason])
        for reason, _ in amounts.most_common()
    ]


def cost(report: Report) -> str:
    """What watching and experiments took."""
    tried = f"experiments {seconds(report.experiments_s)}" if report.experiments_s else "no experiments were run"
    return f"the training took {seconds(report.observing_s)} under watch, {tried}"
