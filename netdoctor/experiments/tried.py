"""Fixes with their trials: which of them cured, in which order they are shown, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

from netdoctor.experiments.treatments.untried import REASONS
from netdoctor.finding import Fix, Trial, Verdict

_ORDER = {Verdict.CURED: 0, Verdict.EASED: 1, Verdict.NO_EFFECT: 3, Verdict.WORSE: 4}
_UNTRIED = 2


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
