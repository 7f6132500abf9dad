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
from netdoctor.checks.numerics.history import level_before
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.combination import DEEP, OWN_FACTS, Part, as_fix, combined, named, on_tiny_batch
from netdoctor.experiments.loss_terms import CLASSES, REGRESSION, watched_terms
from netdoctor.experiments.pace import QUICK, is_slow, lighter, seconds_per_step
from netdoctor.experiments.proposals import ELSEWHERE, OF_RATE, OPEN, propose, written_elsewhere
from netdoctor.experiments.sandbox import Budget, Run, quiet
from netdoctor.experiments.score import fits
from netdoctor.experiments.side_effects import Units, side_effects, units
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Places, Treatment
from netdoctor.experiments.verdict import decide, goes_on, scale_of
from netdoctor.finding import Certainty, Finding, Fix, Severity, Trial, Verdict
from netdoctor.recording import Fault, Recording
from netdoctor.report import Crash, Experiment, Report
from netdoctor.trend import judge_series

STEPS = 100  # enough for a trend over noise (trend.py asks for 30), and a few passes over the captured batches
FINDINGS = 3  # of a report, and
FIXES = 3  # of a finding: what comes later hardly is the cause, or the cure
SHARE = 0.25  # of the time that is left: the most that one arm may take; half of it where steps are slow
_LOOKED = 8  # iterations that the loss of a constant prediction is taken from
_BROKEN = frozenset(
    {"nan-input", "non-finite-activation", "non-finite-gradient", "non-finite-parameter", "half-precision-overflow"}
)
# Facts of the copy itself, which the control arm has whatever its loss does.
_BUILT_IN = frozenset(
    {"parameter-not-in-optimizer", "unregistered-parameters", "detached-graph", "symmetric-initialization"}
)
_GAINS = frozenset({Verdict.CURED, Verdict.EASED})  # of what a combination has over the same without one of its parts
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
    before, pace = budget.spent, seconds_per_step(step)
    trials = _Trials(recording, step, places, budget, say)
    if is_slow(pace, budget.left):
        trials = _Trials(recording, lighter(step, pace, budget.left), places, budget, say, QUICK, 2 * SHARE)
    if step.fault is not None:
        trials.fault = replace(trials, step=step.fault, usual=level_before(recording))
    interrupted = False
    try:
        with quiet():
            trials.run(report.findings)
    except KeyboardInterrupt:
        interrupted = True
    findings = tuple(found for finding in report.findings for found in trials.attach(finding))
    notes = ("the trials of the fixes were interrupted",) if interrupted else ()
    return replace(
        report,
        findings=ranking.rank(findings, checks),
        blind_spots=(*report.blind_spots, *notes),
        crashes=(*report.crashes, *(Crash(fault.where, fault.error) for fault in trials.faults)),
        experiments=(*report.experiments, *trials.rows),
        experiments_s=report.experiments_s + budget.spent - before,
    )


@dataclass(frozen=True, slots=True)
class _Done:
    """An arm that was run, and how alive its activations are at the end."""

    run: Run
    units: Units
    holds: bool | None = None  # whether the copy is rid of the trouble; None where the loss decides


@dataclass(slots=True)
class _Trials:
    recording: Recording
    step: TrainingStep
    places: Places
    budget: Budget
    say: Say
    steps: int = STEPS
    share: float = SHARE
    fault: _Trials | None = None  # those that begin with the step that made the first NaN or Inf
    usual: float | None = None  # the loss before that step
    faults: list[Fault] = field(default_factory=list)
    rows: list[Experiment] = field(default_factory=list)
    _fixes: dict[int, list[Fix]] = field(default_factory=dict)  # by id of the finding
    _needed: set[int] = field(default_factory=set)  # ids of findings whose part of a combination is needed
    _controls: list[tuple[Treatment, _Done]] = field(default_factory=list)
    _chance: list[float | None] = field(default_factory=list)

    # --- which ---------------------------------------------------------------------------------------------------

    def run(self, findings: Sequence[Finding]) -> None:
        """Try the fixes of the first findings, the most promising first, until the budget is spent."""
        first = [f for f in findings if f.severity is not Severity.ADVICE][:FINDINGS]
        for finding in first:
            if any(fix.trial is not None for fix in finding.fixes):
                if finding.check in OF_RATE:
                    self._better_rate(finding)
                continue
            fixes = self._fixes[id(finding)] = list(finding.fixes)
            for number, fix in enumerate(fixes[:FIXES]):
                trial = self._attempt(finding, fix)
                if trial is not None:
                    fixes[number] = _told(fix, trial)
            if not any(_cures(fix) for fix in fixes):
                fixes += self._proposed(finding)
        uncured = [f for f in first if f.fixes and not any(map(_cures, self._fixes.get(id(f), f.fixes)))]
        if uncured:
            self._combine(uncured[0], first)

    def _better_rate(self, finding: Finding) -> None:
        """For a learning rate that its check has tried: that of the range test, where it does twice as well."""
        known = next((fix.trial.treated for fix in finding.fixes if fix.trial is not None), ())
        for fix in self._proposed(finding):
            found = fix.trial.treated if fix.trial is not None else ()
            steps = min(len(known), len(found))
            if steps and 0 <= 2 * _end(found[:steps]) < _end(known[:steps]):
                self._fixes[id(finding)] = [fix, *finding.fixes]

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
            return written_elsewhere(self.recording, self.step, self._control(Treatment()).run.losses)
        except Exception:  # the captured steps cannot be run, which the experiments have said
            return None

    def attach(self, finding: Finding) -> list[Finding]:
        """The finding with its tried fixes in order, proven when one of them cured it, and the symptoms that are causes."""
        own, fixes = id(finding) in self._needed, finding.fixes
        if id(finding) in self._fixes:
            fixes = tuple(sorted(self._fixes[id(finding)], key=_rank))
        proven = own or (id(finding) in self._fixes and any(map(_cures, fixes)))
        freed = [s for s in finding.symptoms if id(s) in self._needed]
        kept = tuple(s for s in finding.symptoms if id(s) not in self._needed)
        certainty = Certainty.PROVEN if proven else finding.certainty
        whole = replace(finding, fixes=fixes, certainty=certainty, symptoms=kept, apart=finding.apart or own)
        return [whole, *(replace(s, certainty=Certainty.PROVEN, apart=True) for s in freed)]

    # --- several at once -----------------------------------------------------------------------------------------------

    def _combine(self, finding: Finding, others: Sequence[Finding]) -> None:
        """Where no single fix cures: one of each of the first findings together, without those that add nothing."""
        parts = self._candidates(finding, others)
        trial = self._together(parts)
        if trial is None or trial.verdict is not Verdict.CURED:
            return
        needed, best = list(parts), trial
        for part in reversed(parts):
            rest = [other for other in needed if other is not part]
            without = self._together(rest) if rest else None
            if without is None or self._gains(without, best):
                continue
            needed, best = rest, without
        if len(needed) < 2 or best.verdict is not Verdict.CURED:
            return
        self._needed.update(id(part.finding) for part in needed)
        fix = replace(as_fix(needed), trial=best)
        self._fixes[id(finding)] = [_told(fix, best), *self._fixes.get(id(finding), finding.fixes)]
        self._on_tiny_batch(needed)

    def _candidates(self, finding: Finding, others: Sequence[Finding]) -> list[Part]:
        """One fix per finding, the most promising of those that did no harm; then more fixes of the uncured one."""
        own = [s for f in others for s in f.symptoms if s.check in OWN_FACTS]
        found = [self._usable(f)[:1] for f in (finding, *(f for f in others if f is not finding), *own)]
        found.append(self._usable(finding)[1:])
        parts: dict[tuple[str, str], Part] = {}
        for part in (part for several in found for part in several):
            parts.setdefault((part.fix.treatment, part.fix.code), part)
        return list(parts.values())[:DEEP]

    def _usable(self, finding: Finding) -> list[Part]:
        found = []
        for fix in sorted(self._fixes.get(id(finding), finding.fixes), key=_rank):
            try:
                harmful = fix.trial is not None and fix.trial.verdict is Verdict.WORSE
                made = None if harmful else treatment_of(Case(self.step, self.recording, finding, fix, self.places))
            except Exception:  # what cannot be made for a combination has been told by its own trial
                made = None
            if made is not None:
                plain = next((f for f in finding.fixes if (f.treatment, f.code) == (fix.treatment, fix.code)), fix)
                found.append(Part(finding, plain, made))
        return found

    def _together(self, parts: list[Part]) -> Trial | None:
        treatment = combined(parts) if len(parts) > 1 else parts[0].treatment if parts else None
        if treatment is None or self.budget.left <= 0:
            return None
        self.say(f"trying {named(parts)}")
        try:
            return self._compared(parts[0].finding, treatment)
        except Exception:  # one of them does not go with another: no combination
            return None

    def _gains(self, without: Trial, with_it: Trial) -> bool:
        """Whether a part adds to the others: the second trial's treated arm trains better than the first one's."""
        scale = scale_of(
            float(self.recording.facts.get("loss_lower_bound", -math.inf)), None, without.treated, with_it.treated
        )
        return decide(without.treated, with_it.treated, scale) in _GAINS

    def _on_tiny_batch(self, parts: list[Part]) -> None:
        treatment = combined(parts)
        if treatment is None or self.budget.left <= 0:
            return
        self.say(f"fitting a tiny batch with {named(parts)}")
        try:
            row = on_tiny_batch(self.step, self.recording, treatment, named(parts), self.budget)
        except Exception:  # no tiny batch, or a treatment that asks for the whole one
            return
        if row is not None:
            self.rows.append(row)

    # --- one trial ---------------------------------------------------------------------------------------------------

    def _attempt(self, finding: Finding, fix: Fix, treatment: Treatment | None = None) -> Trial | None:
        """The trial of a fix; None where it cannot be tried, or time is up. A NaN that a training gets only later is looked for
        in the step that made it."""
        if self.fault is None or finding.check not in _BROKEN:
            return self._tried(finding, fix, treatment)
        origin, found = self.recording.origin, None
        if origin is not None and origin.step < len(self.step.iterations):
            found = self._tried(finding, fix, treatment)
        if found is not None and found.verdict is not Verdict.NOT_REPRODUCED:
            return found
        return self.fault._tried(finding, fix, treatment) or found

    def _tried(self, finding: Finding, fix: Fix, treatment: Treatment | None) -> Trial | None:
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
        before = self._control(treatment)
        notes: list[str] = [treatment.says] if treatment.says else []
        after = self._arm(treatment, notes)
        control, treated = before.run, after.run
        one = [treatment.control_unit * loss for loss in control.losses]
        other = [treatment.unit * loss for loss in treated.losses]
        bound = float(self.recording.facts.get("loss_lower_bound", -math.inf))
        broken = finding.check in _BROKEN
        chance = None if broken or treatment.control_unit != 1.0 else self._constant()
        scale = scale_of(bound, chance, one, other)
        verdict = decide(one, other, scale, broken, finding.check in _BUILT_IN)
        if verdict is Verdict.EASED and self.usual is not None and goes_on(other, self.usual, scale):
            verdict = Verdict.CURED
        if verdict is None:
            return None
        if treatment.holds is not None:
            verdict = _by_itself(before.holds, after.holds, other)
        seconds = control.seconds + treated.seconds
        besides = side_effects(before.units, after.units, other)
        return Trial(verdict, tuple(one), tuple(other), len(other), seconds, "; ".join(notes), besides)

    def _control(self, treatment: Treatment) -> _Done:
        """The untreated arm; trials with the same one share it."""
        for other, done in self._controls:
            same = (other.both, other.beside, other.control) == (treatment.both, treatment.beside, treatment.control)
            if same and (treatment.holds is None or treatment.holds is other.holds):
                return done
        done = self._arm(treatment)
        self._controls.append((treatment, done))
        return done

    def _arm(self, treatment: Treatment, notes: list[str] | None = None) -> _Done:
        """A control arm or, with `notes` to write to, a treated one."""
        sandbox = (treatment.control if notes is None else treatment.sandbox)(self.step)
        with ExitStack() as stack:
            bench = Bench(sandbox, self.step.iterations, stack)
            treatment.both(bench)
            (treatment.beside if notes is None else treatment.apply)(bench)
            if notes is not None:
                notes += bench.notes
            run = sandbox.run(bench.iterations, self.steps, self.budget.share(self.share * self.budget.left))
            if len(bench.measured) == len(run.losses) and run.ended != "non-finite":
                run.losses = list(bench.measured)  # before anything else runs the loss, which would be noted as well
            alive = units(bench) if run.ended != "non-finite" else {}
            holds = None if treatment.holds is None else treatment.holds(bench)
        return _Done(run, alive, holds)

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
        ours = not any(is_user_file(frame.filename) for frame in frames) and frames[-1].name != "__torch_function__"
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
    if trial.side_effects:
        says = f"{says} Side effect on the copy: {'; '.join(trial.side_effects)}."
    return replace(fix, says=says, trial=trial)


def _by_itself(before: bool | None, after: bool | None, losses: Sequence[float]) -> Verdict:
    """The verdict where the trouble itself was looked for in both copies: gone, and the treated one trains."""
    if before:
        return Verdict.NOT_REPRODUCED
    if not after:
        return Verdict.NO_EFFECT
    return Verdict.EASED if judge_series(losses).kind in {"rises", "non-finite"} else Verdict.CURED


def _end(losses: Sequence[float]) -> float:
    return statistics.median(losses[-max(2, len(losses) // 5) :])


def _cures(fix: Fix) -> bool:
    return fix.trial is not None and fix.trial.verdict is Verdict.CURED


def _rank(fix: Fix) -> int:
    return _UNTRIED if fix.trial is None else _ORDER.get(fix.trial.verdict, _UNTRIED)
