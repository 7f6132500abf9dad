"""A mask of attention that hides what it should show: is it so, and does the training do better with it turned round?"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from netdoctor.capture.source import source_line
from netdoctor.capture.step import TrainingStep
from netdoctor.checks.structure.attention_masks import masks
from netdoctor.checks.structure.mask_trials import AS_IT_IS, INVERTED, LONG, SEEN, told
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.masking import Reader, Site, invert, read
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.recording import Arm, Recording

STEPS = 180  # as for other slow starts: the first hundred steps may be a warm-up
PLAIN = 0.45  # of the time: a step in which masks are turned takes longer, and as many are wanted


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "masks/seen" where the captured step hides keys of an attention, in whichever sense.

    Facts, where a mask hides what it should show: "kind" ("padding": what takes part is the same in all samples, and what is
    hidden is not; "causal": queries see their future alone), "operation", "argument", "module", "file", "line", "text", "kept"
    (share of the keys that take part), "beside" (a right causal part is joined with it), "sites" (how many calls of the step are
    given such a mask). Then also "masks/as it is" and "masks/inverted", both from the start of the training over as many steps,
    as far as the time goes.
    """
    if recording.graph is None or not masks(recording.graph) or step.lost or step.begins or not step.iterations:
        return {}
    try:
        with quiet():
            reader = read(recording, step)
        facts = _facts(recording, reader)
        seen = Arm(SEEN, np.empty(0), facts=facts)
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {SEEN: Arm(SEEN, np.empty(0), failure=why_it_failed(error))}
    if not told(recording, seen):
        return {SEEN: seen}
    try:
        plain = _arm(AS_IT_IS, step, {}, STEPS, budget.share(PLAIN * budget.left))
        whole = plain.facts["ended"] != "out of time"
        if len(plain.losses) < LONG and not whole:
            raise CannotReplayError(f"{len(plain.losses)} steps were done in the time for it, {LONG} are needed")
        steps = STEPS if whole else len(plain.losses)
        return {arm.name: arm for arm in (seen, plain, _arm(INVERTED, step, reader.wrong, steps, budget))}
    except Exception as error:
        return {SEEN: seen, AS_IT_IS: Arm(AS_IT_IS, np.empty(0), failure=why_it_failed(error))}


def _facts(recording: Recording, reader: Reader) -> dict[str, float | str | bool]:
    if not reader.wrong:
        return {"says": "what masks keep differs between samples" if reader.hides else "no mask hides anything"}
    (site, known), graph = next(iter(reader.wrong.items())), recording.graph
    line = source_line(site.file, site.line)
    here = [o for o in masks(graph) if (o.file, o.line) == (site.file, site.line)] if graph is not None else []
    return {
        "says": "a mask hides what it should show",
        "verdict": "failed",
        "operation": site.kind,
        "argument": site.argument,
        "module": here[0].module if here else "",
        "file": site.file,
        "line": float(site.line),
        "text": "" if line is None else line.text,
        "sites": float(len(reader.wrong)),
        **known,
    }


def _arm(name: str, step: TrainingStep, wrong: dict[Site, Any], steps: int, budget: Budget) -> Arm:
    with quiet(), ExitStack() as stack:
        bench = Bench(Sandbox(step), step.iterations, stack)
        if wrong:
            invert(bench, wrong)
        run = bench.sandbox.run(bench.iterations, steps, budget)
    return Arm(name, np.asarray(run.losses), run.seconds, {"ended": run.ended})
