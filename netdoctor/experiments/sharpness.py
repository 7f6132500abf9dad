"""A softmax inside of the net that is nearly one-hot from the start: does the training do better with smaller scores?"""

from __future__ import annotations

import math
from contextlib import ExitStack

import numpy as np
import torch

from netdoctor.capture.step import Replay, TrainingStep, refuse_overwritten
from netdoctor.checks.units.sharp_softmax import AS_IT_IS, FIRST, LONG, SCALED, candidates
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.scores import Line, Temper, temper
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.recording import Arm, Recording

STEPS = 180  # as for other slow starts: the first hundred steps may be a warm-up
PLAIN = 0.4  # of the time: a step with scaled scores takes longer, and as many are wanted


def first_step(recording: Recording, step: TrainingStep) -> dict[str, Arm]:
    """The arm "scores/in the first step", where the graph shows a softmax that seems to pass too little of the gradient.

    Facts, for each line of the user's with one that does, masked keys left out: "std FILE:LINE", the standard deviation of the
    scores along a row, and "passed FILE:LINE", the share of an even softmax's gradient that passes; of several modules those of
    the sharpest.
    """
    lines = [(operation.file, operation.line) for operation in candidates(recording)]
    if not lines or step.lost or step.begins or not step.iterations:
        return {}
    try:
        return {FIRST: Arm(FIRST, np.empty(0), facts=_facts(_sharpest(step, lines)))}
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {FIRST: Arm(FIRST, np.empty(0), failure=why_it_failed(error))}


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """That arm and, where one is too sharp, "scores/as it is" and "scores/scaled": both from the start of the training, over as
    many steps, as far as the time goes."""
    arms = first_step(recording, step)
    facts = arms[FIRST].facts if arms else {}
    lines = [(o.file, o.line) for o in candidates(recording) if f"std {o.file}:{o.line}" in facts]
    if not lines:
        return arms
    try:
        plain = _arm(AS_IT_IS, step, [], STEPS, budget.share(PLAIN * budget.left))
        steps = len(plain.losses)
        if steps < LONG:
            raise CannotReplayError(f"{steps} steps were done in the time for it, {LONG} are needed")
        return {arm.name: arm for arm in (arms[FIRST], plain, _arm(SCALED, step, lines, steps, budget))}
    except Exception as error:
        return arms | {AS_IT_IS: Arm(AS_IT_IS, np.empty(0), failure=why_it_failed(error))}


def _facts(sharp: dict[Line, Temper]) -> dict[str, float | str | bool]:
    places = {f"{file}:{line}": found for (file, line), found in sharp.items()}
    least = min((found.passed for found in sharp.values()), default=math.nan)
    says = (
        f"{100 * least:.0f} % of an even softmax's gradient passes" if sharp else "masked keys explain what is one-hot"
    )
    stds: dict[str, float | str | bool] = {"says": says} | {
        f"std {place}": found.std for place, found in places.items()
    }
    return stds | {f"passed {place}": found.passed for place, found in places.items()}


def _sharpest(step: TrainingStep, lines: list[Line]) -> dict[Line, Temper]:
    """For each line with a sharp softmax, what the sharpest of its modules shows in the first step."""
    with quiet(), ExitStack() as stack, torch.no_grad():
        bench = Bench(Sandbox(step), step.iterations, stack)
        looks = temper(bench, lines, only_looks=True)
        replay = Replay(bench.sandbox.copies)
        for backward in bench.iterations[0].backwards:
            refuse_overwritten(backward)
            replay.loss(backward)
    sharp = sorted((look for look in looks if look.sharp), key=lambda look: look.passed)
    return {found.line: found for found in reversed(sharp)}


def _arm(name: str, step: TrainingStep, lines: list[Line], steps: int, budget: Budget) -> Arm:
    with quiet(), ExitStack() as stack:
        bench = Bench(Sandbox(step), step.iterations, stack)
        if lines:
            temper(bench, lines)
        run = bench.sandbox.run(bench.iterations, steps, budget)
    return Arm(name, np.asarray(run.losses), run.seconds, {"ended": run.ended})
