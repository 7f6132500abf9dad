"""Does standardising the inputs, or the targets, train where the script as it is does not? Same start, same batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from netdoctor.capture.step import TrainingStep
from netdoctor.data import TensorFacts
from netdoctor.errors import why_it_failed
from netdoctor.experiments.learning_rate import STEPS
from netdoctor.experiments.sandbox import Budget, Run, quiet
from netdoctor.experiments.treatments.batches import TREATMENTS
from netdoctor.experiments.treatments.treatment import Bench, Case, Places, Treatment
from netdoctor.finding import Finding, Fix, Severity
from netdoctor.recording import Arm, Recording

LARGE, SMALL = 5.0, 0.02  # root mean squares outside of which a tensor is worth a trial
OFFSET = 5.0  # standard deviations that the mean lies from zero
UNEVEN = 100.0  # between the standard deviations of two columns


def trials(recording: Recording, step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "scaling/control", "scaling/input", "scaling/target" and "scaling/both", the latter where that is out of scale.

    Losses with standardised targets are told in the script's own unit. The control is left out where no other arm ran.
    """
    arms: dict[str, Arm] = {}
    ready: list[Treatment] = []
    for what, given in (("input", recording.inputs), ("target", recording.targets)):
        if budget.left > 0 and any(map(unscaled, given)):
            say(f"standardising the {what}")
            made = _treatment(what, recording, step)
            if made is not None:
                arms[f"scaling/{what}"] = _arm(f"scaling/{what}", made, step, budget)
                ready.append(made)
    if len(ready) > 1 and budget.left > 0 and not any(arm.failure for arm in arms.values()):
        say("standardising the input and the target")
        arms["scaling/both"] = _arm("scaling/both", _together(*ready), step, budget)
    if any(not arm.failure for arm in arms.values()):
        arms["scaling/control"] = _arm("scaling/control", Treatment(), step, budget)
    return arms


def unscaled(facts: TensorFacts) -> bool:
    """Whether floating-point data is so far from standardised that a trial is worth its time."""
    std = facts.columns.std[facts.columns.std > 0]
    if not facts.rows or not std.size or facts.classes is not None or not facts.dtype.startswith(("float", "bfloat")):
        return False
    far = abs(facts.mean) > OFFSET * facts.std
    return facts.rms > LARGE or facts.rms < SMALL or far or float(std.max() / std.min()) > UNEVEN


def _treatment(what: str, recording: Recording, step: TrainingStep) -> Treatment | None:
    name = f"standardise-{what}"
    finding = Finding(f"unnormalised-{what}", "", Severity.ADVICE, "")
    return TREATMENTS[name](Case(step, recording, finding, Fix(name, ""), Places(step)))


def _together(one: Treatment, other: Treatment) -> Treatment:
    """Both changes: where input and target are out of scale, either alone may show nothing."""

    def apply(bench: Bench) -> None:
        one.apply(bench)
        other.apply(bench)

    return replace(other, apply=apply)


def _arm(name: str, treatment: Treatment, step: TrainingStep, budget: Budget) -> Arm:
    try:
        with quiet(), ExitStack() as stack:
            bench = Bench(treatment.sandbox(step), step.iterations, stack)
            treatment.apply(bench)
            run = bench.sandbox.run(bench.iterations, STEPS, budget.share(budget.left / 2))
    except Exception as error:  # nothing to change, or the user's code failed on the copy: an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    return _told(name, run, treatment.unit)


def _told(name: str, run: Run, unit: float) -> Arm:
    losses = unit * np.asarray(run.losses, dtype=np.float64)
    if not losses.size:
        return Arm(name, losses, failure="no time was left for it")
    says = f"loss {losses[0]:.3g} → {losses[-1]:.3g} in {losses.size} steps"
    return Arm(name, losses, run.seconds, {"ended": run.ended, "says": says})
