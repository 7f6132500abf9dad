"""Several treatments at once, for troubles that have several causes; and what each of them adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from netdoctor.capture.step import Action, Iteration, TrainingStep
from netdoctor.experiments.sandbox import Budget, Run, Sandbox
from netdoctor.experiments.tiny_batch import TinyBatch, cut
from netdoctor.experiments.treatments.treatment import Bench, Treatment
from netdoctor.finding import Finding, Fix
from netdoctor.recording import Arm, Recording
from netdoctor.report import Experiment

DEEP = 3  # parts at most: more are hardly the cause of one trouble, and 2^n arms would be needed to tell
STEPS = 500  # of the tiny batch: cheap, and enough for Adam at 1e-3 to learn a few samples by heart

# What a script does whatever else is wrong with it: such a finding is never merely the consequence of another one's
# fault, only its harm can be. With a trial of its own it may prove to be a cause beside the one that it lies under.
OWN_FACTS = frozenset(
    {
        "clip-too-small",
        "eval-mode-in-training",
        "feature-scales",
        "frozen-by-mistake",
        "lr-decays-too-fast",
        "over-regularised",
        "parameter-not-in-optimizer",
        "unnormalised-input",
        "unnormalised-target",
    }
)


@dataclass(frozen=True, slots=True)
class Part:
    """A fix of a finding, and how it is tried."""

    finding: Finding
    fix: Fix
    treatment: Treatment


def combined(parts: Sequence[Part]) -> Treatment | None:
    """All parts in one treatment; None where two of them each want a copy, a control or a measure of their own.

    BatchNorm stays: what it hides is told by the trial of that part alone.
    """
    plain = Treatment()
    treatments = [kept(part) for part in parts]
    sandboxes = [t.sandbox for t in treatments if t.sandbox is not Sandbox]
    controls = [t.control for t in treatments if t.control is not Sandbox]
    measures = [t.beside for t in treatments if t.beside is not plain.beside]
    if max(len(sandboxes), len(controls), len(measures)) > 1:
        return None
    return Treatment(
        in_turn([t.apply for t in treatments]),
        sandboxes[0] if sandboxes else Sandbox,
        in_turn([t.both for t in treatments]),
        measures[0] if measures else plain.beside,
        controls[0] if controls else Sandbox,
        math.prod(t.unit for t in treatments),
        math.prod(t.control_unit for t in treatments),
    )


def kept(part: Part) -> Treatment:
    """The treatment of a part as it is used beside others: with BatchNorm in its place."""
    if part.finding.check != "batchnorm-masking":
        return part.treatment
    return replace(part.treatment, both=Treatment().both)


def in_turn(changes: Sequence[Callable[[Bench], object]]) -> Callable[[Bench], object]:
    """One change that makes all of these, in order."""
    wanted = tuple(change for change in changes if change is not Treatment().both)
    if not wanted:
        return Treatment().both

    def change_all(bench: Bench) -> None:
        for change in wanted:
            change(bench)

    return change_all


def named(parts: Sequence[Part]) -> str:
    """The treatments' names, joined."""
    return " + ".join(part.fix.treatment for part in parts)


def as_fix(parts: Sequence[Part]) -> Fix:
    """One fix that stands for all of them: their sentences and their code, in order."""
    code = "\n".join(f"# {part.fix.treatment}\n{part.fix.code}" for part in parts if part.fix.code)
    says = " ".join(f"({number}) {part.fix.says}" for number, part in enumerate(parts, 1))
    return Fix(named(parts), f"All of these together: {says}", code, parts[0].fix.reach)


# --- on a tiny batch -------------------------------------------------------------------------------------------------


def on_tiny_batch(
    step: TrainingStep, recording: Recording, treatment: Treatment, names: str, budget: Budget
) -> Experiment | None:
    """The row that tells how far a few samples are fitted without and with the treatment, under the script's schedule.

    Adds the arms "combination/untreated" and "combination/treated". None where an arm could not take a step; raises
    what a copy raises, and CannotReplayError where no tiny batch can be cut out.
    """
    batch: TinyBatch = cut(step, step.copies())
    iterations = list(_scheduled(step, recording, batch))
    untreated = _arm(step, Treatment(treatment.both, treatment.control), iterations, budget.share(budget.left / 2))
    treated = _arm(
        step,
        replace(treatment, apply=in_turn([treatment.both, treatment.apply])),
        iterations,
        budget.share(budget.left),
    )
    if not untreated.losses or not treated.losses:
        return None
    recording.arms["combination/untreated"] = _told("untreated", untreated, treatment.control_unit)
    recording.arms["combination/treated"] = _told("treated", treated, treatment.unit)
    ends = [unit * run.losses[-1] for run, unit in ((untreated, treatment.control_unit), (treated, treatment.unit))]
    orders = math.log10(ends[0] / ends[1]) if ends[0] > 0 and ends[1] > 0 and math.isfinite(ends[0]) else math.nan
    lower = f", {orders:.1f} orders of magnitude lower" if orders >= 1 else ""
    says = f"{batch.samples} samples in {len(untreated.losses)} steps: {_course(untreated)} as it is; in "
    says += f"{len(treated.losses)} steps: {_course(treated)} with {names}{lower}"
    return Experiment("combined-treatment", "passed" if orders >= 1 or not math.isfinite(ends[0]) else "failed", says)


def _told(name: str, run: Run, unit: float) -> Arm:
    return Arm(f"combination/{name}", unit * np.asarray(run.losses), run.seconds, {"ended": run.ended})


def _course(run: Run) -> str:
    return f"loss {run.losses[0]:.3g} → {run.losses[-1]:.3g}"


def _arm(step: TrainingStep, treatment: Treatment, iterations: list[Iteration], budget: Budget) -> Run:
    with ExitStack() as stack:
        bench = Bench(treatment.sandbox(step), iterations, stack)
        treatment.apply(bench)
        return bench.sandbox.run(bench.iterations, STEPS, budget)


def _scheduled(step: TrainingStep, recording: Recording, batch: TinyBatch) -> Iterator[Iteration]:
    """The tiny batch once per step, at the learning rates that the script's own run had in that step."""
    captured = [it for it in step.iterations if any(action.kind == "step" for action in it.actions)]
    series = recording.scalars.get("lr")
    for number in range(STEPS):
        tiny = batch.iterations[number % len(batch.iterations)]
        at = min(number, len(captured) - 1)
        later = 1.0
        if series is not None and 0 <= at < number < len(series.values) and series.values[at] > 0:
            later = float(series.values[number] / series.values[at])
        elif series is not None and 0 <= at < len(series.values) <= number and series.values[at] > 0:
            later = float(series.values[-1] / series.values[at])
        rates = {a.optimizer: a.lrs for a in captured[at].actions if a.kind == "step"} if captured else {}
        yield Iteration([_at(action, rates, later) for action in tiny.actions], tiny.bytes)


def _at(action: Action, rates: dict[int, tuple[float, ...]], later: float) -> Action:
    if action.kind != "step" or action.optimizer not in rates:
        return action
    return replace(action, lrs=tuple(later * lr for lr in rates[action.optimizer]))
