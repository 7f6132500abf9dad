"""Fixes with their trials: which of them cured, in which order they are shown, and what is said of them."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import replace

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.treatments.untried import REASONS
from netdoctor.finding import Finding, Fix, Severity, Trial, Verdict

_ORDER = {Verdict.CURED: 0, Verdict.EASED: 1, Verdict.NO_EFFECT: 3, Verdict.WORSE: 4}
_UNTRIED = 2
_IN_VAIN = frozenset({Verdict.NO_EFFECT, Verdict.WORSE})
_BLOCKED = frozenset({"constant-layer", "input-independent-output"})  # nothing of the input passes
_AHEAD = 0.25  # of what the control lost: a treated arm that loses so much more may be on its way to help


def cures(fix: Fix) -> bool:
    """Whether the fix was tried, and cured."""
    return fix.trial is not None and fix.trial.verdict is Verdict.CURED


def rank(fix: Fix) -> int:
    """The order of fixes: what cured first, what made it worse last."""
    return _UNTRIED if fix.trial is None else _ORDER.get(fix.trial.verdict, _UNTRIED)


def improves(trial: Trial | None, before: Trial) -> bool:
    """Whether a second trial of a fix says more for it than the first one."""
    return trial is not None and _ORDER.get(trial.verdict, _UNTRIED) < min(
        _ORDER.get(before.verdict, _UNTRIED), _UNTRIED
    )


def told(fix: Fix, trial: Trial) -> Fix:
    """The fix with its trial; what is unusual about that, and harm that it did, is said."""
    says = fix.says
    if trial.says and trial.verdict is not Verdict.COULD_NOT_RUN:
        says = f"{says} (Tried with {trial.says}.)"
    if trial.verdict is Verdict.WORSE:
        says = f"{says} On a copy this made it worse."
    if trial.side_effects:
        says = f"{says} Side effect on the copy: {'; '.join(trial.side_effects)}."
    return replace(fix, says=says, trial=trial)


def without_trial(fix: Fix) -> Trial | None:
    """Why a fix cannot be tried, where that lies in its nature; None where there is nothing to say."""
    reason = REASONS.get(fix.treatment)
    return None if reason is None else Trial(Verdict.COULD_NOT_RUN, says=reason)


def weighed(finding: Finding, suspicions: Collection[str], step: TrainingStep) -> list[Finding]:
    """The finding; one of a check among `suspicions` whose fixes were tried in vain as advice, and its symptoms by themselves.

    In vain: at least one was without effect or did harm and none helps, on captured steps that hold the finding's first.
    What concerns all of a layer (a share of 1) is not idle, whatever was tried: nothing passes through it. No more is what
    leaves a layer constant.
    """
    first, tried = finding.first_step or 0, [fix.trial for fix in finding.fixes if fix.trial is not None]
    seen = any(part.begins <= first <= part.begins + len(part.iterations) for part in step.parts())
    vain = seen and any(trial.verdict in _IN_VAIN for trial in tried) and not any(map(_may_help, tried))
    blocks = finding.share >= 1 or any(symptom.check in _BLOCKED for symptom in finding.symptoms)
    if finding.check not in suspicions or blocks or not vain:
        return [finding]
    return [replace(finding, severity=Severity.ADVICE, symptoms=()), *finding.symptoms]


def without_cured(findings: Collection[Finding], of_harm: Collection[str]) -> list[Finding]:
    """The findings, with the symptoms of those by themselves that another one's cure makes idle.

    A check in `of_harm` speaks only as training is hurt. Where the fix of another root alone cures that on a copy, all
    that was left as it was there is no cause; what its own fix cures may be a second one.
    """
    cured = {f.check for f in findings if any(map(cures, f.fixes))}
    kept: list[Finding] = []
    for finding in findings:
        idle = cured and finding.check in of_harm and finding.check not in cured and not finding.apart
        kept += finding.symptoms if idle else [finding]
    return kept


def _may_help(trial: Trial) -> bool:
    """Whether a trial leaves open that the fix helps, or shows that it does."""
    if trial.verdict in _IN_VAIN or trial.verdict is Verdict.COULD_NOT_RUN:
        return False
    if trial.verdict is not Verdict.NOT_REPRODUCED or not trial.control or not trial.treated:
        return True
    end = _end(trial.control)
    return end - _end(trial.treated) > _AHEAD * (trial.control[0] - end)


def _end(losses: Collection[float]) -> float:
    return statistics.median(list(losses)[-max(2, len(losses) // 5) :])
