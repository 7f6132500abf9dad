"""Causes before symptoms: which findings are roots, what lies under each, and in which order a reader meets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial

from netdoctor.check import Check
from netdoctor.finding import Certainty, Finding, Severity, Verdict

Key = tuple[object, ...]

# Upstream first, the order on which AUTOTRAINER (data > activation and loss > gradients > convergence) and
# DeepDiagnosis (data > weights > learning rate) agree. It only decides between findings that are otherwise equal.
_UPSTREAM = ("data", "loss", "structure", "numerics", "signal", "units", "ranks", "training", "experiments")
# What shows before the first update was not made by anything that came later; after it, a cause may be noticed later
# than its symptom by as much as the thinning of the sampled steps (each 1.1 times the one before).
_LATE = 1.1
_HELPED = frozenset({Verdict.CURED, Verdict.EASED})  # a cause that was seen at work stands before one that may be idle


def rank(findings: Iterable[Finding], checks: Iterable[Check]) -> tuple[Finding, ...]:
    """The root findings in order, each with its symptoms under it; every finding appears exactly once.

    A finding is a symptom of another when that one's check explains its check, directly or through other findings, and
    did not appear later; a trial may show that it causes more than that. Where two checks explain each other the better
    ranked finding is the cause; where several roots explain a symptom it lies under the best ranked one. Advice is no
    cause of anything graver, and what a trial showed to be a cause apart is no symptom. A root is raised to the severity
    of its gravest symptom, so that nothing grave is hidden. Order: severity, certainty, first step, number of symptoms,
    what a trial eased, upstream first, share; of errors, the birth of a NaN in the first step stands before all others.
    The result does not depend on the order of the input.
    """
    known, findings = list(checks), list(findings)
    reach = _closure({check.name: check.explains for check in known}, {finding.check for finding in findings})
    upstream = {check.name: _place(check) for check in known}
    key = partial(_key, reach=reach, upstream=upstream, breaking={check.name for check in known if check.breaks})
    ordered = sorted(findings, key=key)
    under = _assign(ordered, reach)
    roots = [_with_symptoms(f, [ordered[i] for i in under[at]]) for at, f in enumerate(ordered) if at in under]
    return tuple(sorted(roots, key=key))


def _closure(explains: Mapping[str, frozenset[str]], present: Set[str]) -> dict[str, frozenset[str]]:
    """Per check, all that it explains, directly or through others that were found: a chain through a check that found
    nothing is broken there, and would make causes of symptoms."""
    return {name: frozenset(_walk(name, explains, present)) for name in explains}


def _walk(name: str, explains: Mapping[str, frozenset[str]], present: Set[str]) -> set[str]:
    seen: set[str] = set()
    queue = [name]
    while queue:
        new = explains.get(queue.pop(), frozenset()) - seen
        seen |= new
        queue.extend(new & present)
    return seen


def _place(check: Check) -> int:
    parts = type(check).__module__.split(".")
    family = parts[-2] if len(parts) > 1 else ""
    return _UPSTREAM.index(family) if family in _UPSTREAM else len(_UPSTREAM)


def _key(finding: Finding, reach: Mapping[str, frozenset[str]], upstream: Mapping[str, int], breaking: Set[str]) -> Key:
    """The total order: what is gravest, surest, earliest and explains most comes first; the text settles ties."""
    return (
        finding.severity.rank,
        not (finding.check in breaking and _broken_from_the_first(finding)),
        finding.certainty.rank,
        finding.first_step or 0,  # a finding without a step is about what stood from the beginning
        -len(finding.symptoms),
        not any(fix.trial is not None and fix.trial.verdict in _HELPED for fix in finding.fixes),
        upstream.get(finding.check, len(_UPSTREAM)),
        -len(reach.get(finding.check, ())),
        -finding.share,
        finding.check,
        repr(finding),
    )


def _broken_from_the_first(finding: Finding) -> bool:
    """Whether a NaN stands before anything is learned, so that all else was measured on what it left.

    Not one that was only inferred: in such a NaN too large steps end.
    """
    grave, sure = finding.severity is Severity.ERROR, finding.certainty is not Certainty.INFERRED
    return grave and sure and finding.first_step == 0


def _assign(ordered: Sequence[Finding], reach: Mapping[str, frozenset[str]]) -> dict[int, list[int]]:
    """Root → its symptoms, as indices into `ordered`; the first root that leads to a symptom gets it."""
    count = range(len(ordered))
    after = {c: [s for s in count if _causes(ordered, c, s, reach)] for c in count}
    roots = set(count) - {symptom for symptoms in after.values() for symptom in symptoms}
    under: dict[int, list[int]] = {}
    taken: set[int] = set()
    for root in sorted(roots):
        below: set[int] = set()
        queue = [root]
        while queue:
            new = [s for s in after[queue.pop()] if s not in below]
            below.update(new)
            queue.extend(new)
        under[root] = sorted(below - taken)
        taken |= below
    return under


def _causes(ordered: Sequence[Finding], cause: int, symptom: int, reach: Mapping[str, frozenset[str]]) -> bool:
    """Whether one finding explains another; acyclic: mutual explanation follows the order, all else the closure."""
    above, below = ordered[cause], ordered[symptom]
    if above.check == below.check or below.check not in {*reach.get(above.check, ()), *above.causes}:
        return False
    if below.apart or (above.severity is Severity.ADVICE and below.severity is not Severity.ADVICE):
        return False
    if above.check in reach.get(below.check, ()) and cause > symptom:
        return False
    return _in_time(above.first_step, below.first_step)


def _in_time(cause: int | None, symptom: int | None) -> bool:
    if cause is None or symptom is None:
        return True
    return cause == 0 if symptom == 0 else cause <= symptom * _LATE + 1


def _with_symptoms(finding: Finding, symptoms: Sequence[Finding]) -> Finding:
    if not symptoms:
        return finding
    gravest = min((finding, *symptoms), key=lambda f: f.severity.rank).severity
    return replace(finding, severity=gravest, symptoms=(*finding.symptoms, *symptoms))
