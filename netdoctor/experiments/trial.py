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
from netdoctor.experiments import learning_rate
from netdoctor.experiments.atop import BLOCKED, atop, put_back
from netdoctor.experiments.combination import DEEP, OWN_FACTS, Part, as_fix, combined, named, on_tiny_batch
from netdoctor.experiments.measuring import by_number
from netdoctor.experiments.pace import QUICK, all_lighter, is_slow, seconds_per_step
from netdoctor.experiments.proposals import ELSEWHERE, OF_RATE, OPEN, propose, written_elsewhere
from netdoctor.experiments.sandbox import Budget, Run, quiet
from netdoctor.experiments.score import constant_loss
from netdoctor.experiments.side_effects import Units, side_effects, units
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.optimization import rate_alone
from netdoctor.experiments.treatments.treatment import Bench, Case, Places, Treatment
from netdoctor.experiments.tried import cures, improves, rank, told, weighed, without_cured, without_trial
from netdoctor.experiments.verdict import by_itself, decide, goes_on, scale_of
from netdoctor.finding import Certainty, Finding, Fix, Severity, Trial, Verdict
from netdoctor.recording import Fault, Recording
from netdoctor.report import Crash, Experiment, Report

STEPS = 100  # enough for a trend over noise (trend.py asks for 30), and a few passes over the captured batches
FINDINGS = 3  # of a report, and
FIXES = 3  # of a finding: what comes later hardly is the cause, or the cure
SHARE = 0.25  # of the time that is left: the most that one arm may take; half of it where steps are slow
_BROKEN = frozenset(
    {"nan-input", "non-finite-activation", "non-finite-gradient", "non-finite-parameter", "half-precision-overflow"}
)
# Facts of the copy itself, which the control arm has whatever its loss does.
_BUILT_IN = frozenset(
    {"parameter-not-in-optimizer", "unregistered-parameters", "detached-graph", "symmetric-initialization"}
)
_GAINS = frozenset({Verdict.CURED, Verdict.EASED})  # of what a combination has over the same without one of its parts
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
        trials = _Trials(recording, all_lighter(step, pace, budget.left), places, budget, say, QUICK, 2 * SHARE)
    interrupted = False
    try:
        with quiet():
            trials.run(report.findings)
    except KeyboardInterrupt:
        interrupted = True
    checks = list(checks)
    suspicions = {check.name for check in checks if check.suspects}
    attached = without_cured(
        [found for finding in report.findings for found in trials.attach(finding)],
        {check.name for check in checks if check.of_harm},
    )
    findings = tuple(found for finding in attached for found in weighed(finding, suspicions, step))
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
    measured: float = math.nan  # of the treatment's measure


@dataclass(slots=True)
class _Trials:
    recording: Recording
    step: TrainingStep
    places: Places
    budget: Budget
    say: Say
    steps: int = STEPS
    share: float = SHARE
    faults: list[Fault] = field(default_factory=list)
    rows: list[Experiment] = field(default_factory=list)
    _fixes: dict[int, list[Fix]] = field(default_factory=dict)  # by id of the finding
    _needed: set[int] = field(default_factory=set)  # ids of findings whose part of a combination is needed
    _controls: list[tuple[int, Treatment, _Done]] = field(default_factory=list)
    _chance: dict[int, float | None] = field(default_factory=dict)  # by the first step of the captured ones

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
                    fixes[number] = told(fix, trial)
                    self._put_back(finding, fix, trial)
            if not any(cures(fix) for fix in fixes):
                fixes += self._proposed(finding)
        self._try_atop(first)
        uncured = [f for f in first if f.fixes and not any(map(cures, self._fixes.get(id(f), f.fixes)))]
        if uncured:
            self._combine(uncured[0], first)

    def _try_atop(self, first: Sequence[Finding]) -> None:
        """Where a fix shows nothing by itself and another finding has a proven one: both, beside that one alone."""
        cured = [f for f in first if any(map(cures, self._fixes.get(id(f), f.fixes)))]
        proven = [part for f in cured for part in self._usable(f)[:1]][:1]
        for finding in first if proven else ():
            fixes = [] if finding in cured else self._fixes.get(id(finding), [])
            for number, fix in enumerate(fixes[:FIXES]):
                part = next((p for p in self._usable(finding) if p.fix.treatment == fix.treatment), None)
                if fix.trial is None or fix.trial.verdict not in BLOCKED or part is None:
                    continue
                both = atop(proven[0], part.treatment)
                trial = None if both is None else self._attempt(finding, part.fix, both)
                if trial is not None and improves(trial, fix.trial):
                    fixes[number] = told(part.fix, trial)

    def _put_back(self, finding: Finding, fix: Fix, trial: Trial) -> None:
        """Weights that BatchNorm hid train without it: a row on how they train with it."""
        if finding.check != "batchnorm-masking" or trial.verdict is not Verdict.CURED or self.budget.left <= 0:
            return
        treatment = treatment_of(Case(self.step, self.recording, finding, fix, self.places))
        if treatment is not None:
            own = self._control(self.step, Treatment()).run.losses
            together = self._arm(self.step, Treatment(treatment.apply), []).run.losses
            self.rows.append(put_back(own, trial.treated, together))

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
            return written_elsewhere(self.recording, self.step, self._control(self.step, Treatment()).run.losses)
        except Exception:  # the captured steps cannot be run, which the experiments have said
            return None

    def attach(self, finding: Finding) -> list[Finding]:
        """The finding with its tried fixes in order, proven when one of them cured it, and the symptoms that are causes."""
        own, fixes = id(finding) in self._needed, finding.fixes
        if id(finding) in self._fixes:
            fixes = tuple(sorted(self._fixes[id(finding)], key=rank))
        proven = own or (id(finding) in self._fixes and any(map(cures, fixes)))
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
        self._fixes[id(finding)] = [told(fix, best), *self._fixes.get(id(finding), finding.fixes)]
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
        for fix in sorted(self._fixes.get(id(finding), finding.fixes), key=rank):
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
            return self._compared(self.step, parts[0].finding, treatment)
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
        """The trial of a fix; None where it cannot be tried, or time is up.

        What began after the first captured steps, or does not show in them, is tried on those of the late window.
        """
        trial = None
        for step in self._windows(finding) if treatment is None else [self.step]:
            trial = self._attempt_on(step, finding, fix, treatment) or trial
            if trial is not None and trial.verdict is not Verdict.NOT_REPRODUCED:
                break
        return trial

    def _windows(self, finding: Finding) -> list[TrainingStep]:
        """The captured parts of the training: the last one that begins before the finding does, then the others."""
        first = finding.first_step or 0
        return sorted(self.step.parts(), key=lambda part: (part.begins > first, abs(first - part.begins)))

    def _attempt_on(self, step: TrainingStep, finding: Finding, fix: Fix, treatment: Treatment | None) -> Trial | None:
        if self.budget.left <= 0:
            return None
        try:
            treatment = treatment or treatment_of(Case(step, self.recording, finding, fix, self.places))
            if treatment is None:
                return without_trial(fix)
            self.say(f"trying {fix.treatment} against {finding.check}")
            return self._compared(step, finding, treatment)
        except (CannotReplayError, LookupError):
            return None  # there is nothing to change, or nothing to run
        except Exception as error:
            self._note(fix, error)
            return None

    def _compared(self, step: TrainingStep, finding: Finding, treatment: Treatment) -> Trial | None:
        factor = None if step.begins else rate_alone(treatment)
        known = None if factor is None else learning_rate.known(self.recording, factor)
        before = self._control(step, treatment) if known is None else _Done(known[0], {})
        notes: list[str] = [treatment.says] if treatment.says else []
        notes += [f"the training from step {step.begins} on"] if step.begins and treatment.steps != 0 else []
        after = self._arm(step, treatment, notes) if known is None else _Done(known[1], {})
        control, treated = before.run, after.run
        one = [treatment.control_unit * loss for loss in control.losses]
        other = [treatment.unit * loss for loss in treated.losses]
        bound = float(self.recording.facts.get("loss_lower_bound", -math.inf))
        broken = finding.check in _BROKEN
        chance = None if broken or treatment.control_unit != 1.0 else self._constant(step)
        scale = scale_of(bound, chance, one, other)
        verdict = decide(one, other, scale, broken, finding.check in _BUILT_IN) if treatment.steps != 0 else None
        usual = level_before(self.recording) if broken and step.begins > 0 else None
        if verdict is Verdict.EASED and usual is not None and goes_on(other, usual, scale):
            verdict = Verdict.CURED
        found, measure = None, treatment.measure
        if measure is not None:
            verdict, found = by_number(measure, before.measured, after.measured, other, verdict)
        duel = self.recording.facts.get("several_optimizers") and len(self.recording.losses) > 1
        silent = duel and not (broken or measure or treatment.holds or verdict is Verdict.CURED)
        if verdict is None or silent:  # losses of models that play against each other rise and fall for other reasons
            return None
        if treatment.holds is not None:
            verdict = by_itself(before.holds, after.holds, other)
        seconds = control.seconds + treated.seconds
        besides = side_effects(before.units, after.units, other) if other else ()
        return Trial(verdict, tuple(one), tuple(other), len(other), seconds, "; ".join(notes), besides, found)

    def _control(self, step: TrainingStep, treatment: Treatment) -> _Done:
        """The untreated arm; trials with the same one share it."""
        for begins, other, done in self._controls:
            same = begins == step.begins and other.control == treatment.control
            same = same and (other.both, other.beside) == (treatment.both, treatment.beside)
            same = same and other.steps == treatment.steps and treatment.measure in (None, other.measure)
            if same and (treatment.holds is None or treatment.holds is other.holds):
                return done
        done = self._arm(step, treatment)
        self._controls.append((step.begins, treatment, done))
        return done

    def _arm(self, step: TrainingStep, treatment: Treatment, notes: list[str] | None = None) -> _Done:
        """A control arm or, with `notes` to write to, a treated one."""
        sandbox = (treatment.control if notes is None else treatment.sandbox)(step)
        with ExitStack() as stack:
            seconds = self.share * self.budget.left
            bench = Bench(sandbox, step.iterations, stack, seconds=seconds)
            treatment.both(bench)
            (treatment.beside if notes is None else treatment.apply)(bench)
            if notes is not None:
                notes += bench.notes
            steps = self.steps if treatment.steps is None else min(self.steps, treatment.steps)
            share = self.share if notes is None else self.share / (1 - self.share)  # as long as the control had
            run = sandbox.run(bench.iterations, steps, self.budget.share(share * self.budget.left))
            if len(bench.measured) == len(run.losses) and run.ended != "non-finite":
                run.losses = list(bench.measured)  # before anything else runs the loss, which would be noted as well
            alive = units(bench) if run.losses and run.ended != "non-finite" else {}
            holds = None if treatment.holds is None else treatment.holds(bench)
            measured = math.nan if treatment.measure is None else treatment.measure.of(bench)
        return _Done(run, alive, holds, measured)

    def _constant(self, step: TrainingStep) -> float | None:
        """The loss of the best constant prediction on the captured batches; None where the loss is of another kind."""
        if step.begins not in self._chance:
            try:
                self._chance[step.begins] = constant_loss(step)
            except Exception:  # the loss was not understood: judged without
                self._chance[step.begins] = None
        return self._chance[step.begins]

    def _note(self, fix: Fix, error: Exception) -> None:
        """What fails in the user's code, or in the training of a changed copy, is an answer; all else is our fault."""
        frames = traceback.extract_tb(error.__traceback__)
        running = any(frame.name in ("iterate", "_first_loss") for frame in frames)
        ours = not any(is_user_file(frame.filename) for frame in frames) and frames[-1].name != "__torch_function__"
        if ours and (not running or _OUR_FOLDER in frames[-1].filename.replace("\\", "/")):
            place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
            self.faults.append(Fault(f"trial of {fix.treatment}", f"{type(error).__name__}: {error} ({place})"[:300]))


def _end(losses: Sequence[float]) -> float:
    return statistics.median(losses[-max(2, len(losses) // 5) :])
