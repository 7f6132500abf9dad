"""Do dense targets lie where their inputs lie? Steps in which the target of each sample is turned to where it fits best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from netdoctor.capture.source import source_line
from netdoctor.capture.step import Iteration, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward
from netdoctor.checks.data.turned import ASSIGNED, COMMON, LEFT, SHARE, SHUFFLED, TRUE, TURNED
from netdoctor.errors import why_it_failed
from netdoctor.experiments.dense import Chooser, dense_of
from netdoctor.experiments.grids import TURNS, Turn
from netdoctor.experiments.sandbox import Budget, Run, quiet
from netdoctor.experiments.tiny_batch import refuse_opposed
from netdoctor.experiments.treatments.treatment import as_trained
from netdoctor.recording import Arm, Recording

STEPS = 72  # three passes over the captured batches: U-Nets and detectors left their plateau within one
CLEAR = 0.1  # of a sample's loss: what another way round must save
ALIKE = 0.1  # of what lies between a sample's best and its worst way round: two that are as good as each other
FEW = 0.05  # of the samples: so few fit better another way round because they are hard
Facts = dict[str, float | str | bool]


def trials(recording: Recording, step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "alignment/assigned", "true", and "shuffled" or "turned", where a loss compares with values on a grid.

    All go on from the weights that the training ended with, with the script's own optimizer and the captured batches.
    "assigned": in each step the targets of each sample are turned (mirrored, by half, and on square grids by a quarter or
    transposed) to where the sample's loss is lowest at that moment. Where hardly any sample fits better turned after one
    pass, that is all. Else "true": as they are; and, where one way round fits nearly all, "turned": all by that one; where
    not, "shuffled": assigned, after the targets were permuted over the samples of each batch, as choosing among eight wins
    something by itself.

    Facts of "assigned": `others`, the share of samples that fit clearly better turned than as they are, `common`, the way
    round that fits most samples, `fits`, the share that it fits as well as any other, `ways`, how many there are, and the
    line (`file`, `line`, `text`) that compares with the targets.
    """
    final = recording.arms.get("final/evaluation")
    left = math.nan if final is None else float(final.facts.get("left", math.nan))
    if recording.origin is not None or step.lost or not step.iterations or left < LEFT:
        return {}
    arms: dict[str, Arm] = {}
    try:
        with quiet():
            refuse_opposed(step)
            copies = step.copies()
            if not any(dense_of(backward, copies) for backward in step.iterations[0].backwards):
                return {}
            _compare(step, budget, say, arms)
    except Exception as error:  # the user's code failed on the copy: an answer, not a fault
        arms[ASSIGNED] = Arm(ASSIGNED, np.empty(0), failure=why_it_failed(error))
    return arms


def _compare(step: TrainingStep, budget: Budget, say: Callable[[str], None], arms: dict[str, Arm]) -> None:
    say("turning targets to where they fit")
    arms[ASSIGNED] = _assigned(ASSIGNED, step, False, budget.share(budget.left / 2.5))
    facts = arms[ASSIGNED].facts
    if float(facts["others"]) < SHARE:
        return
    say("learning targets as they are")
    arms[TRUE] = _plain(TRUE, step, None, budget.share(budget.left / 2))
    if float(facts["fits"]) >= COMMON:
        say("learning turned targets")
        arms[TURNED] = _plain(TURNED, step, TURNS[str(facts["common"])], budget)
    else:
        say("turning shuffled targets to where they fit")
        arms[SHUFFLED] = _assigned(SHUFFLED, step, True, budget)


def _assigned(name: str, step: TrainingStep, shuffled: bool, budget: Budget) -> Arm:
    sandbox, scratch = as_trained(step), step.copies()
    choosers: list[Chooser] = []

    def chosen(backward: Backward) -> Backward:
        dense = dense_of(backward, scratch)
        if dense is None:
            return backward
        held = dense.permuted(len(choosers)) if shuffled else None
        choosers.append(Chooser(dense, sandbox.copies, held, CLEAR, ALIKE))
        return dense.tail.replaced(backward, choosers[-1])

    iterations = _changed(step.iterations, chosen)

    def lie(losses: list[float]) -> bool:
        return len(losses) == len(iterations) and float(torch.cat([c.others for c in choosers]).double().mean()) < FEW

    run = sandbox.run(iterations, STEPS, budget, lie)
    return _arm(name, run, _facts(choosers))


def _plain(name: str, step: TrainingStep, turn: Turn | None, budget: Budget) -> Arm:
    """The steps with all targets turned by one way, or as they are."""
    sandbox, scratch = as_trained(step), step.copies()

    def turned(backward: Backward) -> Backward:
        dense = None if turn is None else dense_of(backward, scratch)
        if dense is None or turn is None:
            return backward
        held = dense.turned([turn] * dense.grid.size)
        return dense.tail.replaced(backward, lambda *outputs: dense.run(sandbox.copies, outputs, held))

    return _arm(name, sandbox.run(_changed(step.iterations, turned), STEPS, budget), {})


def _changed(iterations: list[Iteration], change: Callable[[Backward], Backward]) -> list[Iteration]:
    made = []
    for iteration in iterations:
        for backward in iteration.backwards:
            refuse_overwritten(backward)
        actions = [replace(a, backward=None if a.backward is None else change(a.backward)) for a in iteration.actions]
        made.append(Iteration(actions, iteration.bytes))
    return made


def _arm(name: str, run: Run, facts: Facts) -> Arm:
    return Arm(name, np.asarray(run.losses), run.seconds, {"ended": run.ended} | facts)


def _facts(choosers: list[Chooser]) -> Facts:
    """What the last pass over the batches found."""
    first = choosers[0].dense
    ways = first.grid.turns()
    same = [c for c in choosers if len(c.fits) == len(ways)]
    others = float(torch.cat([c.others for c in same]).double().mean())
    fits = torch.cat([c.fits for c in same], 1).double().mean(1)
    best = int(fits.argmax())
    at = source_line(*first.position())
    line: Facts = {} if at is None else {"file": at.file, "line": float(at.line), "text": at.text}
    says = f"{100 * others:.3g} % of the samples fit better turned; {100 * float(fits[best]):.3g} % fit best {ways[best].name}"
    facts: Facts = {"others": others, "common": ways[best].name, "fits": float(fits[best]), "ways": float(len(ways))}
    return facts | line | {"says": says}
