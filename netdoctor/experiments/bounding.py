"""Does a term of derivatives that was taken without a graph fail to bound the training: does it explode without one alone?"""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.signal.exploding_gradients import ExplodingGradients
from netdoctor.checks.structure.derivatives import graphless
from netdoctor.checks.structure.unbounded import BOUNDS, unbounded
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.derivatives import build_graphs
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.recording import Arm, Recording
from netdoctor.trend import judge

STEPS, FEWEST = 150, 60  # of either copy; captured batches come back every 24 steps
PART = 10  # of the steps: the first and the last of them are compared


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "derivatives/bounds"; none unless a term's derivative has no graph and the training exploded.

    Facts: `without` and `with` it, by how much the norm of the whole gradient grows from the first to the last tenth of as many
    steps (infinite where it becomes NaN), and `steps`.
    """
    lines = [(operation.file, operation.line) for operation in graphless(recording) if operation.file]
    if not lines or not _explodes(recording) or step.lost or not step.iterations:
        return {}
    began = time.perf_counter()
    try:
        with quiet():
            own = _norms(step, [], budget.share(budget.left / 2))
            other = _norms(step, lines, budget.share(budget.left))
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {BOUNDS: Arm(BOUNDS, np.empty(0), failure=why_it_failed(error))}
    count = min(len(own), len(other))
    grown, bounded = _growth(own[:count]), _growth(other[:count])
    if not count or (count < FEWEST and math.isfinite(grown)):
        return {BOUNDS: Arm(BOUNDS, np.empty(0), failure="no time was left for it")}
    says = f"in {count} steps the gradient grows by {grown:.3g} without a graph, by {bounded:.3g} with one"
    facts: dict[str, float | str | bool] = {"without": grown, "with": bounded, "steps": float(count), "says": says}
    facts["verdict"] = "failed" if unbounded(grown, bounded) else "passed"
    return {BOUNDS: Arm(BOUNDS, np.empty(0), time.perf_counter() - began, facts)}


def _explodes(recording: Recording) -> bool:
    broken = recording.origin is not None or judge(recording).kind == "non-finite"
    return broken or next(ExplodingGradients().judge(recording), None) is not None


def _norms(step: TrainingStep, lines: list[tuple[str, int]], budget: Budget) -> list[float]:
    """The norm of the whole gradient after each step; the last one NaN where the training broke."""
    bench, found = Bench(Sandbox(step), step.iterations), []
    with bench.stack:
        build_graphs(bench, lines)
        for number in range(STEPS):
            if budget.left <= 0:
                break
            loss = bench.sandbox.iterate(
                bench.iterations[number % len(bench.iterations)], number < len(bench.iterations)
            )
            norms = [p.grad.norm() for p in bench.sandbox.trainable() if p.grad is not None]
            found.append(float(torch.stack(norms).norm()) if norms and math.isfinite(loss) else math.nan)
            if not math.isfinite(found[-1]):
                break
    return found


def _growth(norms: list[float]) -> float:
    if not norms or not math.isfinite(norms[-1]):
        return math.inf
    part = max(1, len(norms) // PART)
    first, last = float(np.median(norms[:part])), float(np.median(norms[-part:]))
    return last / first if first > 0 else math.inf
