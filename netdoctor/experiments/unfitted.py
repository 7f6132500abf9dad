"""Are there a few samples that the model cannot be taught, though it knows all others by heart?"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Iteration, TrainingStep, refuse_overwritten
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.adam import Adam
from netdoctor.experiments.final import classes_of, switched
from netdoctor.experiments.loss_terms import CLASSES, watched_terms
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.tiny_batch import input_rows
from netdoctor.recording import Arm, Recording

NAME = "labels/unfitted"
PASSES, LOOKS = 20, 3  # through the captured batches; wrong at the end of each of the last ones
EVERY = 5  # passes before that between looks, which take as long as training
RATE = 1e-3  # of Adam: its usual one
KNOWN = 0.9  # of the samples are right before: else the model is still learning
FEWEST = 2  # samples that are wrong


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "labels/unfitted": the trained model goes on, with Adam, on the captured batches alone, until all are right.

    Only where most of them are right already, and some are not. Facts: "seen", "right" (samples that were right in the last
    look), "stuck" (those that were wrong in the last three), "samples" (indices of these in the first batch that has any),
    "batch" (its number), "passes". No arm where classes cannot be told, or nothing is wrong.
    """
    moving = recording.facts.get("moving_target") or recording.facts.get("several_optimizers")
    if moving or recording.origin is not None or step.lost or not step.iterations:
        return {}
    began = time.perf_counter()
    try:
        with quiet():
            late = replace(step, starts={}, verified=True)  # the copies are of the weights as they are now
            sandbox = Sandbox(late, optimizer=lambda parameters: Adam(parameters, RATE))
            facts = _go_on(sandbox, budget)
    except CannotReplayError as error:
        return {NAME: Arm(NAME, np.empty(0), time.perf_counter() - began, failure=str(error))}
    except Exception as error:
        return {NAME: Arm(NAME, np.empty(0), failure=f"{type(error).__name__}: {error}"[:200])}
    return {NAME: Arm(NAME, np.empty(0), time.perf_counter() - began, facts)} if facts else {}


def _go_on(sandbox: Sandbox, budget: Budget) -> dict[str, float | str | bool]:
    new: list[Tensor] = []
    iterations = sandbox.step.iterations
    wrong = _wrong(sandbox, iterations, new)
    if wrong is None:
        return {}
    seen = sum(int(batch.sum()) for batch in new)
    wrong = [batch & fresh for batch, fresh in zip(wrong, new, strict=True)]
    number = sum(int(batch.sum()) for batch in wrong)
    if number < FEWEST or number > (1 - KNOWN) * seen:
        return {}
    looks: deque[list[Tensor]] = deque(maxlen=LOOKS)
    passes = 0
    kept = [
        index for index, fresh in enumerate(new) if bool(fresh.any())
    ]  # the others hold the samples of an epoch before
    iterations, new = [iterations[index] for index in kept], [new[index] for index in kept]
    while passes < PASSES and budget.left > 0:
        sandbox.run(iterations, len(iterations), budget)
        passes += 1
        if passes % EVERY and passes <= PASSES - LOOKS:
            continue
        wrong = [batch & fresh for batch, fresh in zip(_wrong(sandbox, iterations) or [], new, strict=True)]
        looks.append(wrong)
        if not any(bool(batch.any()) for batch in wrong):
            break
    if budget.left <= 0 and passes < PASSES:
        raise CannotReplayError(
            f"{passes} of {PASSES} passes over the captured batches were all that there was time for"
        )
    if not any(bool(batch.any()) for batch in looks[-1]):
        return {"seen": float(seen), "stuck": 0.0, "passes": float(passes), "says": "all samples can be learned"}
    stuck = [torch.stack(batches).all(0) for batches in zip(*looks, strict=True)]
    left = sum(int(batch.sum()) for batch in stuck)
    first = next((index for index, batch in enumerate(stuck) if bool(batch.any())), 0)
    return {
        "seen": float(seen),
        "right": float(seen - sum(int(batch.sum()) for batch in looks[-1])),
        "stuck": float(left),
        "samples": ",".join(str(i) for i in stuck[first].nonzero().flatten().tolist()[:16]),
        "batch": float(kept[first]),
        "passes": float(passes),
        "says": f"{left} of {seen} samples stay wrong after {passes} more passes",
    }


@torch.no_grad()
def _wrong(sandbox: Sandbox, iterations: list[Iteration], new: list[Tensor] | None = None) -> list[Tensor] | None:
    """For each batch which samples are predicted wrongly in evaluation mode; None where classes cannot be told.

    `new` takes up which samples no batch before had: those of several epochs count once.
    """
    found = []
    met: set[tuple[bytes, int]] = set()
    for iteration in iterations:
        backward = iteration.backwards[0]
        refuse_overwritten(backward)
        _, terms = watched_terms(sandbox.copies, switched(backward, False))
        known = [term for term in terms if term.kind == CLASSES]
        if len(known) != 1 or known[0].prediction is None or known[0].target is None or known[0].target.dim() != 1:
            return None
        pair = classes_of(known[0], known[0].prediction, known[0].target)
        if pair is None or len(pair[0]) != len(known[0].target):  # samples that the loss ignores
            return None
        found.append((pair[0] != pair[1]).cpu())
        if new is not None:
            rows = input_rows(iteration, len(pair[1]))
            if rows is None:
                return None
            new.append(_unmet(rows, pair[1], met))
    return found


def _unmet(rows: Tensor, targets: Tensor, met: set[tuple[bytes, int]]) -> Tensor:
    fresh = []
    for row, target in zip(rows.cpu().numpy(), targets.tolist(), strict=True):
        key = row.tobytes(), target
        fresh.append(key not in met)
        met.add(key)
    return torch.tensor(fresh)
