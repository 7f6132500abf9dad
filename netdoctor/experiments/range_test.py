"""Which learning rate lowers the loss fastest, and from which one on it diverges: the rate grows a little with each step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from netdoctor.capture.step import Action, Iteration, TrainingStep
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Run, Sandbox, quiet
from netdoctor.recording import Arm, Array

NAME = "lr-range-test"
STEPS = 90
LOW, HIGH = 1e-7, 10.0  # fastai's lr_find, which takes 100 steps; wider where the script's own rate lies at an end
BEYOND = 1e3  # times the script's own rate, that the range covers either way
SMOOTH = 0.9  # of the running mean of the losses: over about 10 steps, one decade of rates
DIVERGED = 4.0  # times the best loss above the start's floor: fastai stops there
RISEN = 1.5  # times the best: from here on it counts as diverging
SAFE = (
    10.0  # times under the rate of the lowest loss: the other rule of fastai, so that steepest is not too near the edge
)
LEAST = 30  # steps without which nothing is said


def sweep(step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "lr-range-test": a copy trained on the captured batches while its rate grows geometrically.

    Curves: "lr", one per loss. Facts: "steepest" (rate at which the smoothed loss falls fastest per decade),
    "divergence" (rate from which it rises for good; NaN when it never does), "lowest" (rate of the lowest smoothed
    loss), "suggested" (the steepest, at most a tenth of "lowest"; NaN where the loss never falls), "lr" (the script's
    own). Sources: Smith 2017, cyclical learning rates, section 3.3; fastai's lr_find.
    """
    try:
        with quiet():
            own = _own(step)
            rates = np.geomspace(min(LOW, own / BEYOND), max(HIGH, own * BEYOND), STEPS)
            iterations = [_at(step.iterations[n % len(step.iterations)], float(rate)) for n, rate in enumerate(rates)]
            run = Sandbox(step).run(iterations, STEPS, budget, _diverged)
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        text = why_it_failed(error)
        return {NAME: Arm(NAME, np.empty(0), failure=text[:200])}
    return {NAME: told(run, rates[: len(run.losses)], own)}


def _own(step: TrainingStep) -> float:
    seen = [a.lrs[0] for it in step.iterations for a in it.actions if a.kind == "step" and a.lrs]
    if not seen or not 0 < max(seen) < math.inf:
        raise CannotReplayError("the script has no learning rate that could be changed")
    return max(seen)


def _at(iteration: Iteration, rate: float) -> Iteration:
    """The iteration at other rates; those of the groups keep their proportions."""
    return Iteration([_rated(action, rate) for action in iteration.actions], iteration.bytes)


def _rated(action: Action, rate: float) -> Action:
    top = max(action.lrs, default=0.0)
    return replace(action, lrs=tuple(rate * lr / top for lr in action.lrs)) if top > 0 else action


def _diverged(losses: list[float]) -> bool:
    smooth = smoothed(np.asarray(losses))
    return len(losses) >= LEAST and bool(smooth[-1] > DIVERGED * np.abs(smooth).min())


def smoothed(losses: Array) -> Array:
    """The exponential running mean, corrected for its start."""
    mean, out = 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = SMOOTH * mean + (1 - SMOOTH) * float(loss)
        out.append(mean / (1 - SMOOTH**number))
    return np.asarray(out)


def told(run: Run, rates: Array, own: float) -> Arm:
    """The arm with what can be read from its curve."""
    losses = np.asarray(run.losses)
    kept = losses[np.isfinite(losses)]
    if kept.size < LEAST:
        why = f"{kept.size} steps ran, {LEAST} are needed" if run.ended == "out of time" else "the loss is not finite"
        return Arm(NAME, losses, run.seconds, curves={"lr": rates}, failure=why)
    smooth, log = smoothed(kept), np.log10(rates[: kept.size])
    lowest = int(np.argmin(smooth))
    slope = np.gradient(smooth, log)
    falls = lowest >= 2 and smooth[lowest] < 0.95 * smooth[0]
    steepest = float(rates[int(np.argmin(slope[: lowest + 1]))]) if falls else math.nan
    risen = np.flatnonzero(smooth[lowest:] > RISEN * max(smooth[lowest], 1e-12))
    ended = float(rates[kept.size - 1]) if kept.size < losses.size else math.nan
    divergence = float(rates[lowest + risen[0]]) if risen.size else ended
    suggested = min(steepest, float(rates[lowest]) / SAFE) if falls else math.nan
    facts: dict[str, float | str | bool] = {
        "steepest": steepest,
        "divergence": divergence,
        "lowest": float(rates[lowest]),
        "suggested": suggested,
        "lr": own,
        "ended": run.ended,
    }
    return Arm(NAME, losses, run.seconds, {**facts, "says": _says(facts)}, curves={"lr": rates})


def _says(facts: dict[str, float | str | bool]) -> str:
    steepest, divergence = float(facts["steepest"]), float(facts["divergence"])
    falls = (
        f"the loss falls fastest at a learning rate of {steepest:.2g}" if steepest > 0 else "no rate lowers the loss"
    )
    ends = f"; it diverges from {divergence:.2g} on" if divergence > 0 else "; it never diverges"
    return f"{falls}{ends}; the script's own is {float(facts['lr']):.2g}"
