from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from netdoctor.checks.training.lr_decays_too_fast import LrDecaysTooFast
from netdoctor.finding import Finding, Severity
from netdoctor.recording import SourceLine
from tests.checks.builders import Builder

STEPS = 400


def judged(rate: Callable[[int], float], loss: Callable[[int], float], **facts: object) -> list[Finding]:
    build = Builder(steps=STEPS).linear("0").optimizer("SGD", lr=0.1).scalar("lr", rate).loss(loss)
    build.facts(loss_family="mse", loss_lower_bound=0.0, **facts)
    return list(LrDecaysTooFast().judge(build.done()))


def frozen_from(step: int, slope: float = 0.02) -> Callable[[int], float]:
    """A loss that falls exponentially until a step, and then stands still, with some noise."""
    return lambda at: math.exp(-slope * min(at, step)) * (1 + 0.01 * math.sin(5.0 * at))


def exponential(factor: float) -> Callable[[int], float]:
    return lambda step: 0.1 * factor**step


def test_a_decay_that_stops_a_falling_loss() -> None:
    (finding,) = judged(exponential(0.95), frozen_from(45))
    assert finding.severity is Severity.WARNING
    assert "multiplied by 0.95 per step" in finding.explanation
    assert "halved by step 14" in finding.explanation
    assert finding.location.step == 90


def test_a_decay_within_the_first_steps_is_an_error() -> None:
    (finding,) = judged(exponential(0.5), frozen_from(3, slope=0.001))
    assert finding.severity is Severity.ERROR


@pytest.mark.parametrize(("last", "fires"), [(0.0009, True), (0.0011, False)])
def test_the_limit_of_one_percent(last: float, fires: bool) -> None:
    assert bool(judged(lambda s: 0.1 if s < 60 else last, frozen_from(60))) is fires


@pytest.mark.parametrize(("at", "fires"), [(270, True), (290, False)])
def test_the_share_of_the_run_that_is_left(at: int, fires: bool) -> None:
    assert bool(judged(lambda s: 0.1 if s < at else 0.0005, frozen_from(at, slope=0.004))) is fires


@pytest.mark.parametrize(
    "rate",
    [
        lambda s: 0.05 * (1 + math.cos(math.pi * s / STEPS)),
        lambda s: 0.1 * (1 - s / STEPS),
        lambda s: 0.1 * min(1.0, (s + 1) / 200),
        lambda s: 0.05 * (1 + math.cos(math.pi * (s % 50) / 50)),
        lambda s: 0.1,
    ],
    ids=["cosine", "linear", "warm-up", "restarts", "constant"],
)
def test_silent_on_sound_schedules(rate: Callable[[int], float]) -> None:
    assert judged(rate, frozen_from(60)) == []


def test_silent_where_the_loss_had_settled_before() -> None:
    settled = lambda s: 0.5 + 0.5 * math.exp(-0.1 * s) + 0.01 * math.sin(5.0 * s)  # noqa: E731
    assert judged(lambda s: 0.1 if s < 200 else 0.0005, settled) == []


def test_silent_at_the_floor_and_where_the_loss_goes_on_falling() -> None:
    assert judged(exponential(0.95), frozen_from(200)) == []
    assert judged(lambda s: 0.1 if s < 80 else 0.0005, frozen_from(400, slope=0.006)) == []


def test_the_script_s_own_line_is_moved() -> None:
    build = Builder(steps=STEPS).linear("0").optimizer("SGD", lr=0.1).scalar("lr", exponential(0.9))
    build.loss(frozen_from(20)).facts(loss_family="mse", loss_lower_bound=0.0)
    for step in range(3):
        build.event(step, "scheduler", line=33)
    build.count("scheduler", STEPS)
    source = SourceLine("train.py", 33, "scheduler.step()")
    build.recording.events = [replace(e, source=source) for e in build.recording.events]
    (finding,) = LrDecaysTooFast().judge(build.done())
    assert finding.location.line == 33
    assert "scheduler.step()" in finding.fixes[0].code
    assert "after every batch" in finding.explanation
