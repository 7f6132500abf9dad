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
from netdoctor.experiments.sandbox import Budget, Run, Sandbox, quiet
from netdoctor.experiments.tiny_batch import refuse_opposed
from netdoctor.experiments.treatments.treatment import as_trained
from netdoctor.recording import Arm, Recording

STEPS = 72  # three passes over the captured batches: U-Nets and detectors left their plateau within one
LONG = 160  # from the start, of a model that went blank on the way: seven passes
CLEAR = 0.1  # of a sample's loss: what another way round must save
ALIKE = 0.1  # of what lies between a sample's best and its worst way round: two that are as good as each other
FEW = 0.05  # of the samples: so few fit better another way round because they are hard
MOST = 0.5  # of the samples, which fit as they are: a model that can tell
Make = Callable[[TrainingStep], Sandbox]
Facts = dict[str, float | str | bool]


def trials(recording: Recording, step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "alignment/assigned", "true", and "shuffled" or "turned", where a loss compares with values on a grid.

    All go on from the weights that the training ended with, with the script's own optimizer and the captured batches.
    "assigned": in each step the targets of each sample are turned (mirrored, by half, and on square grids by a quarter or
    transposed) to where the sample's loss is lowest at that moment. Where hardly any sample fits better turned after one
    pass, that is all. Else "true": as they are; and, where one way round fits nearly all, "turned": all by that one; where
    not, "shuffled": assigned, after the targets were permuted over the samples of each batch, as choosing among eight wins
    something by itself. A model that went blank cannot tell a way round: then all of this from the start of the training.

    Facts of "assigned": `others`, the share of samples that fit clearly better turned than as they are, `common`, the way
    round that fits most samples, `fits`, the share that it fits as well as any other, `lie`, the share that fits as it is,
    `ways`, how many there are, `trained`, whether it went on from the trained weights, and the line (`file`, `line`,
    `text`) that compares with the targets.
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
    steps, make = STEPS, as_trained
    arms[ASSIGNED] = _assigned(ASSIGNED, step, make, steps, False, budget.share(budget.left / 3))
    if float(arms[ASSIGNED].facts["others"]) < SHARE and not _told(arms[ASSIGNED]):
        steps, make = LONG, Sandbox
        arms[ASSIGNED] = _assigned(ASSIGNED, step, make, steps, False, budget.share(budget.left / 2.5))
    facts = arms[ASSIGNED].facts
    if float(facts["others"]) < SHARE:
        return
    say("learning targets as they are")
    arms[TRUE] = _plain(TRUE, step, make, steps, None, budget.share(budget.left / 2))
    if float(facts["fits"]) >= COMMON:
        say("learning turned targets")
        arms[TURNED] = _plain(TURNED, step, make, steps, TURNS[str(facts["common"])], budget)
    else:
        say("turning shuffled targets to where they fit")
        arms[SHUFFLED] = _assigned(SHUFFLED, step, make, steps, True, budget)


def _told(arm: Arm) -> bool:
    """Whether the model can tell that targets fit as they are."""
    return float(arm.facts["lie"]) >= MOST


def _assigned(name: str, step: TrainingStep, make: Make, steps: int, shuffled: bool, budget: Budget) -> Arm:
    sandbox, scratch = make(step), step.copies()
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
        if len(losses) != len(iterations):
            return False
        few = float(torch.cat([c.others for c in choosers]).double().mean()) < FEW
        return few and float(torch.cat([c.fits[0] for c in choosers]).double().mean()) >= MOST

    return _arm(name, sandbox.run(iterations, steps, budget, lie), make, _facts(choosers))


def _plain(name: str, step: TrainingStep, make: Make, steps: int, turn: Turn | None, budget: Budget) -> Arm:
    """The steps with all targets turned by one way, or as they are."""
    sandbox, scratch = make(step), step.copies()

    def turned(backward: Backward) -> Backward:
        dense = None if turn is None else dense_of(backward, scratch)
        if dense is None or turn is None:
            return backward
        held = dense.turned([turn] * dense.grid.size)
        return dense.tail.replaced(backward, lambda *outputs: dense.run(sandbox.copies, outputs, held))

    return _arm(name, sandbox.run(_changed(step.iterations, turned), steps, budget), make, {})


def _changed(iterations: list[Iteration], change: Callable[[Backward], Backward]) -> list[Iteration]:
    made = []
    for iteration in iterations:
        for backward in iteration.backwards:
            refuse_overwritten(backward)
        actions = [replace(a, backward=None if a.backward is None else change(a.backward)) for a in iteration.actions]
        made.append(Iteration(actions, iteration.bytes))
    return made


def _arm(name: str, run: Run, make: Make, facts: Facts) -> Arm:
    kept: Facts = {"ended": run.ended, "trained": make is as_trained}
    return Arm(name, np.asarray(run.losses), run.seconds, kept | facts)


def _facts(choosers: list[Chooser]) -> Facts:
    """What the last pass over the batches found."""
    first = choosers[0].dense
    ways = first.grid.turns()
    same = [c for c in choosers if c.seen and len(c.fits) == len(ways)] or choosers[:1]
    others = float(torch.cat([c.others for c in same]).double().mean())
    fits = torch.cat([c.fits for c in same], 1).double().mean(1)
    best = int(fits.argmax())
    at = source_line(*first.position())
    line: Facts = {} if at is None else {"file": at.file, "line": float(at.line), "text": at.text}
    says = f"{100 * others:.3g} % of the samples fit better turned; {100 * float(fits[best]):.3g} % fit best {ways[best].name}"
    facts: Facts = {
        "others": others,
        "common": ways[best].name,
        "fits": float(fits[best]),
        "ways": float(len(ways)),
        "lie": float(fits[0]),
    }
    return facts | line | {"says": says}
