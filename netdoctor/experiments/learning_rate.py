"""Does another learning rate train where the script's own does not? Same start, same batches, same random states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.training.lr_trials import level
from netdoctor.checks.training.slow_rate import LOWER, OWN
from netdoctor.checks.training.update_ratios import medians
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Run, Sandbox, hand_written, quiet, usual_rate
from netdoctor.recording import Arm, Recording
from netdoctor.trend import judge

STEPS = 60  # enough for a trend over noise (trend.py asks for 30), short enough to be run five times
FACTORS = (0.1, 10.0, 0.01, 100.0)  # nearest first: a budget that runs out has answered the likeliest question
USUAL, DECADE = 1e-3, 10.0  # rms(update) / rms(weight) per step of healthy training (CS231n), and what is far from it
AHEAD, FAR = 0.1, 0.6  # of the loss that the best lower rate lost in a short trial: more steps may tell more
LONGER = 3  # times as many steps
LEFT = 0.25  # of the loss that a training left: it works, and may be slow for its rate
JUMP = 2.0  # times the first loss: no minibatch noise


def likely(recording: Recording) -> tuple[float, ...]:
    """The factors in the order in which they are likely to help, by what the script's own run shows.

    Lower rates first where the loss jumped or the weights change by ten times what is usual per step, higher ones
    where they change by a tenth of it.
    """
    ratios = list(medians(recording).values())
    ratio = float(np.median(ratios)) if ratios else USUAL
    losses = np.empty(0) if recording.loss is None else recording.loss.values
    jumped = losses.size > 0 and not losses.max() <= JUMP * abs(losses[0])  # NaN jumped
    if jumped or ratio > DECADE * USUAL:
        return tuple(sorted(FACTORS, key=lambda factor: (factor > 1, abs(np.log(factor)))))
    if ratio < USUAL / DECADE:
        return tuple(sorted(FACTORS, key=lambda factor: (factor < 1, abs(np.log(factor)))))
    return FACTORS


def trials(
    step: TrainingStep,
    budget: Budget,
    say: Callable[[str], None],
    steps: int = STEPS,
    factors: tuple[float, ...] = FACTORS,
    least: int = 0,
) -> dict[str, Arm]:
    """The arms "trial/control" and "trial/lr xF" for each factor F. An arm that cannot run carries the reason.

    No arm takes so much that the first `least` of them would not get as much.
    """
    arms: dict[str, Arm] = {}
    for number, factor in enumerate((1.0, *factors)):
        name = "trial/control" if factor == 1.0 else f"trial/lr x{factor:g}"
        if budget.left <= 0:
            break
        parts = least - number if number < least else 2
        say("learning rate as it is" if factor == 1.0 else f"learning rate x{factor:g}")
        arms[name] = _arm(step, name, factor, budget.share(budget.left / parts), steps)
        if arms[name].failure:
            break  # what stops one of them stops them all
    return arms


def longer(recording: Recording, step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The control and the best lower rate again, over more steps, where that rate was clearly ahead but not yet far down.

    The arms take the places of the short ones, and carry the fact "longer".
    """
    arms = {factor: recording.arms.get(f"trial/lr x{factor:g}") for factor in FACTORS if factor < 1}
    there = {factor: _fall(arm) for factor, arm in arms.items() if arm is not None and not arm.failure}
    control = recording.arms.get("trial/control")
    if control is None or control.failure or not there:
        return {}
    best = max(there, key=lambda factor: there[factor])
    if not (AHEAD <= there[best] < FAR and there[best] >= 2 * _fall(control)):
        return {}
    found = trials(step, budget, say, LONGER * STEPS, (best,), least=2)
    enough = len(found) == 2 and all(not a.failure and len(a.losses) >= LONGER * STEPS // 2 for a in found.values())
    return {name: replace(arm, facts={**arm.facts, "longer": True}) for name, arm in found.items()} if enough else {}


def hasty(recording: Recording) -> bool:
    """Whether a training that learns has a good part of its loss left, while its weights change far more than is usual."""
    trend, ratios = judge(recording), list(medians(recording).values())
    return 1 - trend.drop >= LEFT and bool(ratios) and float(np.median(ratios)) > DECADE * USUAL


def slower(step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "rates/own" and "rates/x0.1": the script's learning rate and a tenth of it, over many steps."""
    found = trials(step, budget, say, LONGER * STEPS, (0.1,), least=2)
    return {name: replace(arm, name=name) for name, arm in zip((OWN, LOWER), found.values(), strict=False)}


def _fall(arm: Arm) -> float:
    """Which part of its first loss an arm lost; nothing where that is not above zero, or the arm broke."""
    end = level(arm) if arm.losses.size else np.inf
    return 1 - end / float(arm.losses[0]) if np.isfinite(end) and arm.losses[0] > 0 else 0.0


def known(recording: Recording, factor: float) -> tuple[Run, Run] | None:
    """The runs at the script's own rate and at `factor` times that, where the trials had both."""
    arms = [recording.arms.get(name) for name in ("trial/control", f"trial/lr x{factor:g}")]
    if any(arm is None or arm.failure for arm in arms):
        return None
    one, other = (Run(list(arm.losses), str(arm.facts["ended"]), arm.seconds) for arm in arms if arm is not None)
    return one, other


def _arm(step: TrainingStep, name: str, factor: float, budget: Budget, steps: int) -> Arm:
    try:
        with quiet():
            sandbox = Sandbox(step, lr_factor=factor)
            lr = (_largest_lr(step) or (usual_rate(step) if factor != 1.0 else None) or 0.0) * factor
            run = sandbox.run(step.iterations, steps, budget)
    except CannotReplayError as error:
        return Arm(name, np.empty(0), failure=str(error))
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    return _told(name, run, lr)


def _told(name: str, run: Run, lr: float) -> Arm:
    return Arm(name, np.asarray(run.losses), run.seconds, {"lr": lr, "ended": run.ended})


def _largest_lr(step: TrainingStep) -> float:
    """The learning rate that the script means: the largest of the captured steps, as a warm-up starts near zero."""
    seen = [lr for it in step.iterations for action in it.actions if action.kind == "step" for lr in action.lrs[:1]]
    if seen:
        return max(seen)
    return float(step.optimizers[0].groups[0].get("lr", float("nan"))) if step.optimizers else hand_written(step)[0]
