"""overfitting: below, at and above its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdoctor.checks.generalisation.curves import rising
from netdoctor.checks.generalisation.overfitting import Overfitting
from netdoctor.data import Evaluation
from netdoctor.finding import Severity
from netdoctor.recording import Event
from tests.checks.builders import Builder


def evaluated(losses: Any, training: Any = lambda step: 2 * 0.98**step, steps: int = 200, **facts: Any) -> Builder:
    build = Builder(steps=steps).loss(training).facts(loss_lower_bound=0.0, **facts)
    at = np.linspace(0, steps - 1, len(losses)).astype(np.int64)
    build.recording.evaluations = [Evaluation(at, np.asarray(losses, np.float64), file="train.py", line=7)]
    return build


def judged(build: Builder) -> list[Any]:
    return list(Overfitting().judge(build.done()))


def turning(to: float, best: float = 1.0, start: float = 2.0, count: int = 20) -> np.ndarray:
    """Falls from start to best, then rises to `to`, and stays there for the last evaluations."""
    down = np.linspace(start, best, count // 4)
    return np.concatenate([down, np.linspace(best, to, count - len(down) - 4), np.full(4, to)])


@pytest.mark.parametrize(
    ("losses", "fires"),
    [
        (turning(1.21), True),
        (turning(1.19), False),
        (turning(1.0), False),
        (turning(0.13, best=0.1, start=3.0), False),  # a rise by a hundredth of what was gained
        (turning(0.5, best=0.1, start=3.0), True),
        (np.linspace(1.0, 2.0, 20), True),  # worse from the first evaluation on
        (np.linspace(2.0, 1.0, 20), False),
        (turning(2.0, count=8)[:7], False),  # too few
        (np.append(turning(2.0), np.nan), False),
    ],
)
def test_a_rise_from_the_best(losses, fires):
    found = judged(evaluated(losses))
    assert [(f.severity, f.location.line) for f in found] == ([(Severity.WARNING, 7)] if fires else [])


def test_a_training_loss_that_rises_as_well_is_no_overfitting():
    assert judged(evaluated(turning(2.0), training=lambda step: 1.0 + 0.01 * step)) == []
    assert judged(evaluated(turning(2.0), training=lambda step: 1.0)) == []


@pytest.mark.parametrize("fact", ["moving_target", "several_optimizers"])
def test_losses_that_need_not_fall_are_left_alone(fact):
    assert judged(evaluated(turning(2.0), **{fact: True})) == []


def test_a_plateau_with_noise_does_not_rise():
    wrong = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 0.1, 40)
        wrong += bool(judged(evaluated(np.concatenate([np.linspace(2, 1, 10), np.full(30, 1.0)]) + noise)))
    assert wrong <= 1


def test_logged_losses_count_and_the_best_step_is_named():
    build = evaluated([])
    build.recording.evaluations = []
    build.scalar("val_loss", turning(2.0), steps=list(range(0, 200, 10)))
    (found,) = judged(build)
    assert found.first_step == 40
    assert "step 40" in found.title


def test_one_lucky_evaluation_is_no_best():
    losses = np.full(20, 1.0) + 0.001 * np.arange(20) % 0.003
    losses[6] = 0.2
    assert rising(losses) is None


@pytest.mark.parametrize(
    ("steps", "severity"),
    [([200], Severity.ADVICE), ([150], Severity.WARNING), ([200, 200], Severity.WARNING), ([], Severity.WARNING)],
)
def test_best_weights_that_are_put_back_at_the_end_leave_advice(steps, severity):
    build = evaluated(turning(2.0))
    build.recording.events += [Event(step, "state put back") for step in steps]
    assert [f.severity for f in judged(build)] == [severity]
