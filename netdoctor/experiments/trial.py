"""No prescription without a trial: each fix that can be applied to a copy is run beside an untreated copy."""

from __future__ import annotations

import math
import statistics
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from netdoctor import ranking
from netdoctor.capture.source import is_user_file
from netdoctor.capture.step import TrainingStep
from netdoctor.check import Check
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.loss_terms import CLASSES, REGRESSION, watched_terms
from netdoctor.experiments.proposals import ELSEWHERE, OPEN, propose, written_elsewhere
from netdoctor.experiments.sandbox import Budget, Run, quiet
from netdoctor.experiments.score import fits
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Places, Treatment
from netdoctor.experiments.verdict import decide, scale_of
from netdoctor.finding import Certainty, Finding, Fix, Severity, Trial, Verdict
from netdoctor.recording import Fault, Recording
from netdoctor.report import Crash, Report

STEPS = 100  # enough for a trend over noise (trend.py asks for 30), and a few passes over the captured batches
FINDINGS = 3  # of a report, and
FIXES = 3  # of a finding: what comes later hardly is the cause, or the cure
SHARE = 0.25  # of the time that is left: the most that one arm may take
_LOOKED = 8  # iterations that the loss of a constant prediction is taken from
_BROKEN = frozenset(
    {"nan-input", "non-finite-activation", "non-finite-gradient", "non-finite-parameter", "half-precision-overflow"}
)
# Facts of the copy itself, which the control arm has whatever its loss does.
_BUILT_IN = frozenset(
    {"parameter-not-in-optimizer", "unregistered-parameters", "detached-graph", "symmetric-initialization"}
)
_ORDER = {Verdict.CURED: 0, Verdict.EASED: 1, Verdict.NO_EFFECT: 3, Verdict.WORSE: 4}
_UNTRIED = 2
_OUR_FOLDER = "netdoctor/experiments/treatments/"
Say = Callable[[str], None]


def try_fixes(
    report: Report,
    recording: Recording,
    step: TrainingStep,
    places: Places,
    checks: Iterable[Check],
    budget: Budget,
    say: Say,
) -> Report:
    """The report with a `Trial` on every fix of the first findings that could be tried, ranked again.

    Both arms start from the weights of before the first step, on the captured batches in their order, with the captured
    random states; the treated one differs in one change. A cure needs a control that showed the trouble. Ctrl-C ends
    the trials and keeps those that are done. Findings that carry a trial already are left alone.
    """
    trials = _Trials(recording, step, places, budget, say)
    before = budget.spent
    interrupted = False
    try:
        with quiet():
            trials.run(report.findings)
    except KeyboardInterrupt:
        interrupted = True
    findings = tuple(trials.attach(finding) for finding in report.findings)
    notes = ("the trials of the fixes were interrupted",) if interrupted else ()
    return replace(
        report,
        findings=ranking.rank(findings, checks),
        blind_spots=(*report.blind_spots, *notes),
        crashes=(*report.crashes, *(Crash(fault.where, fault.error) for fault in trials.faults)),
        experiments_s=report.experiments_s + budget.spent - before,
    )


@dataclass(slots=True)
class _Trials:
    recording: Recording
    step: TrainingStep
    places: Places
    budget: Budget
    say: Say
    faults: list[Fault] = field(default_factory=list)
    _fixes: dict[int, list[Fix]] = field(default_factory=dict)  # by id of the finding
    _controls: list[tuple[Treatment, Run]] = field(default_factory=list)
    _chance: list[float | None] = field(default_factory=list)

    # --- which ---------------------------------------------------------------------------------------------------

    def run(self, findings: Sequence[Finding]) -> None:
        """Try the fixes of the first findings, the most promising first, until the budget is spent."""
        for finding in [f for f in findings if f.severity is not Severity.ADVICE][:FINDINGS]:
            if any(fix.trial is not None for fix in finding.fixes):
                continue
            fixes = self._fixes[id(finding)] = list(finding.fixes)
            for number, fix in enumerate(fixes[:FIXES]):
                trial = self._attempt(finding, fix)
                if trial is not None:
                    fixes[number] = _told(fix, trial)
            if not any(_cures(fix) for fix in fixes):
                fixes += self._proposed(finding)

    def _proposed(self, finding: Finding) -> list[Fix]:
        """For a finding that none of its fixes cures: what the captured steps suggest, as far as it cures."""
        found = []
        for fix, treatment in propose(self.recording, self.step, self.places, finding):
            trial = self._attempt(finding, fix, treatment)
            if trial is not None and trial.verdict is Verdict.CURED:
                found.append(replace(fix, trial=trial))
        alone = None if found else self._alone(finding)
        return found if alone is None else [replace(ELSEWHERE, trial=alone)]

    def _alone(self, finding: Finding) -> Trial | None:
        """The trial of a loop that does nothing but what was captured."""
        if finding.check not in OPEN or self.budget.left <= 0:
            return None
        try:
            return written_elsewhere(self.recording, self.step, self._control(Treatment()).losses)
        except Exception:  # the captured steps cannot be run, which the experiments have said
            return None

    def attach(self, finding: Finding) -> Finding:
        """The finding with its tried fixes in order, and proven when one of them cured it."""
        fixes = self._fixes.get(id(finding))
        if not fixes:
            return finding
        certainty = Certainty.PROVEN if any(map(_cures, fixes)) else finding.certainty
        return replace(finding, fixes=tuple(sorted(fixes, key=_rank)), certainty=certainty)

    # --- one trial ---------------------------------------------------------------------------------------------------

    def _attempt(self, finding: Finding, fix: Fix, treatment: Treatment | None = None) -> Trial | None:
        """The trial of a fix; None where it cannot be tried, or time is up."""
        if self.budget.left <= 0:
            return None
        try:
            case = Case(self.step, self.recording, finding, fix, self.places)
            treatment = treatment or treatment_of(case)
            if treatment is None:
                return None
            self.say(f"trying {fix.treatment} against {finding.check}")
            return self._compared(finding, treatment)
        except (CannotReplayError, LookupError):
            return None  # there is nothing to change, or nothing to run
        except Exception as error:
            self._note(fix, error)
            return None

    def _compared(self, finding: Finding, treatment: Treatment) -> Trial | None:
        control = self._control(treatment)
        notes: list[str] = [treatment.says] if treatment.says else []
        treated = self._arm(treatment, notes)
        one = [treatment.control_unit * loss for loss in control.losses]
        other = [treatment.unit * loss for loss in treated.losses]
        bound = float(self.recording.facts.get("loss_lower_bound", -math.inf))
        broken = finding.check in _BROKEN
        chance = None if broken or treatment.control_unit != 1.0 else self._constant()
        verdict = decide(one, other, scale_of(bound, chance, one, other), broken, finding.check in _BUILT_IN)
        if verdict is None:
            return None
        seconds = control.seconds + treated.seconds
        return Trial(verdict, tuple(one), tuple(other), len(other), seconds, "; ".join(notes))

    def _control(self, treatment: Treatment) -> Run:
        """The untreated arm; trials with the same one share it."""
        for other, run in self._controls:
            if (other.both, other.beside, other.control) == (treatment.both, treatment.beside, treatment.control):
                return run
        run = self._arm(treatment)
        self._controls.append((treatment, run))
        return run

    def _arm(self, treatment: Treatment, notes: list[str] | None = None) -> Run:
        """A control arm or, with `notes` to write to, a treated one."""
        sandbox = (treatment.control if notes is None else treatment.sandbox)(self.step)
        with ExitStack() as stack:
            bench = Bench(sandbox, self.step.iterations, stack)
            treatment.both(bench)
            (treatment.beside if notes is None else treatment.apply)(bench)
            if notes is not None:
                notes += bench.notes
            run = sandbox.run(bench.iterations, STEPS, self.budget.share(SHARE * self.budget.left))
        if len(bench.measured) == len(run.losses) and run.ended != "non-finite":
            run.losses = bench.measured
        return run

    def _constant(self) -> float | None:
        """The loss of the best constant prediction on the captured batches; None where the loss is of another kind."""
        if not self._chance:
            try:
                self._chance.append(constant_loss(self.step))
            except Exception:  # the loss was not understood: judged without
                self._chance.append(None)
        return self._chance[0]

    def _note(self, fix: Fix, error: Exception) -> None:
        """What fails in the user's code, or in the training of a changed copy, is an answer; all else is our fault."""
        frames = traceback.extract_tb(error.__traceback__)
        running = any(frame.name in ("iterate", "_first_loss") for frame in frames)
        ours = not any(is_user_file(frame.filename) for frame in frames)
        if ours and (not running or _OUR_FOLDER in frames[-1].filename.replace("\\", "/")):
            place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
            self.faults.append(Fault(f"trial of {fix.treatment}", f"{type(error).__name__}: {error} ({place})"[:300]))


def constant_loss(step: TrainingStep) -> float | None:
    """The median over captured iterations of the loss of the best constant prediction, in the unit of the loss."""
    copies, values = step.copies(), []
    for iteration in step.iterations[:_LOOKED]:
        total = 0.0
        for backward in iteration.backwards:
            value, terms = watched_terms(copies, backward)
            found = fits(terms, 1)
            measure = sum(fit.measure for fit in found)
            if not terms or len(found) != len(terms) or any(t.kind not in (CLASSES, REGRESSION) for t in terms):
                return None
            if not 0 < measure < math.inf:
                return None
            total += value / measure * sum(fit.constant for fit in found)
        values.append(total)
    found_one = statistics.median(values) if values else math.nan
    return found_one if 0 < found_one < math.inf else None


def _told(fix: Fix, trial: Trial) -> Fix:
    """The fix with its trial; what is unusual about that, and harm that it did, is said."""
    says = fix.says
    if trial.says:
        says = f"{says} (Tried with {trial.says}.)"
    if trial.verdict is Verdict.WORSE:
        says = f"{says} On a copy this made it worse."
    return replace(fix, says=says, trial=trial)


def _cures(fix: Fix) -> bool:
    return fix.trial is not None and fix.trial.verdict is Verdict.CURED


def _rank(fix: Fix) -> int:
    return _UNTRIED if fix.trial is None else _ORDER.get(fix.trial.verdict, _UNTRIED)
