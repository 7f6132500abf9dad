"""Warm-ups, as long as the schedules themselves say, and which functions of the user's may be asked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from netdoctor.capture.pure import is_pure
from netdoctor.capture.schedules import MOST, PLATEAU, WARM_UP, warm_up
from tests.capture.observing import observing

LENGTH = 40
ASKED: list[int] = []
CALLS = 0


class Config:
    length = 30


CONFIG = Config()


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def warm(step: int, length: int) -> float:
    return min(1.0, step / length)


def enclosed(length: int) -> Callable[[int], float]:
    return lambda step: warm(step, length) * 0.5 * (1 + math.cos(math.pi * min(1, step / 1000)))


class Trainer:
    def __init__(self) -> None:
        self.config, self.last = CONFIG, 0

    def factor(self, step: int) -> float:
        config = self.config
        return (step + 1) / config.length if step < config.length else 1.0

    def remembers(self, step: int) -> float:
        self.last = step
        return step / 10

    def asks(self, step: int) -> float:
        return self.factor(step)


def logs(step: int) -> float:
    ASKED.append(step)
    return min(1.0, step / 50)


def counts(step: int) -> float:
    global CALLS
    CALLS = CALLS + 1
    return min(1.0, step / 50)


@pytest.mark.parametrize(
    ("factor", "calls", "rate"),
    [
        (lambda step: min((step + 1) / LENGTH, 1), 39, 0.1),
        (lambda step: min((step + 1) / CONFIG.length, 1), 29, 0.1),
        (lambda step: 2 * min((step + 1) ** -0.5, (step + 1) * 100**-1.5), 99, 0.02),
        (lambda step: float(np.minimum(step / 25, 1)), 25, 0.1),
        (lambda step: min(1, step // 10 / 5), 50, 0.1),  # in stairs
        (lambda step: step % 30 * (1 + step // 30) / 30, 29, 0.1 * 29 / 30),  # it falls, and rises higher later
        (partial(warm, length=50), 50, 0.1),
        (enclosed(20), 20, 0.1 * 0.5 * (1 + math.cos(math.pi * 0.02))),
        (Trainer().factor, 29, 0.1),
    ],
)
def test_a_function_is_asked_how_far_it_rises(factor: Callable[[int], float], calls: int, rate: float) -> None:
    assert warm_up(lr_scheduler.LambdaLR(optimizer(), factor)) == (calls, pytest.approx(rate))


@pytest.mark.parametrize(
    "factor",
    [lambda step: 0.9**step, lambda _: 1.0, lambda step: step / (2 * MOST), lambda step: step // (PLATEAU + 1)],
)
def test_one_that_does_not_rise_or_never_stops(factor: Callable[[int], float]) -> None:
    assert warm_up(lr_scheduler.LambdaLR(optimizer(), factor)) is None


@pytest.mark.parametrize(
    "factor",
    [
        logs,
        counts,
        Trainer().remembers,
        Trainer().asks,
        lambda step: ASKED.append(step) or min(1.0, step / 50),
        lambda step: random.random(),
        lambda step: setattr(CONFIG, "step", step) or 1.0,
        lambda step: max(n for n in (step, ASKED.pop())),
        lambda step: next(iter([step])),
        lambda step: exec("1") or step,
        Config,
        3,
    ],
)
def test_what_may_do_more_than_compute_is_not_asked(factor: Any) -> None:
    assert not is_pure(factor)


def test_it_is_left_as_it_was() -> None:
    ASKED.clear()
    assert warm_up(lr_scheduler.LambdaLR(optimizer(), logs)) is None
    assert ASKED == [0]  # torch's own


def test_torchs_own_warm_ups() -> None:
    made = optimizer()
    assert warm_up(lr_scheduler.LinearLR(made, 0.1, total_iters=33)) == (33, pytest.approx(0.1))
    assert warm_up(lr_scheduler.ConstantLR(made, 0.1, total_iters=7)) == (7, pytest.approx(0.1))
    assert warm_up(lr_scheduler.LinearLR(made, 1.0, 0.1, 33)) is None
    assert warm_up(lr_scheduler.CosineAnnealingLR(made, 10)) is None


def test_a_function_that_fails_is_none_of_our_business() -> None:
    table = [n / 10 for n in range(5)]
    assert warm_up(lr_scheduler.LambdaLR(optimizer(), lambda step: table[step])) is None


def test_those_inside_of_another_are_counted() -> None:
    made = optimizer()
    with observing() as observation:
        parts = [lr_scheduler.LinearLR(made, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(made, 10)]
        lr_scheduler.SequentialLR(made, parts, [5])
    counts = observation.recording.counts
    assert (counts["scheduler built"], counts["scheduler inside"]) == (3, 2)
    (event,) = [event for event in observation.recording.events if event.kind == WARM_UP]
    assert (event.value, event.detail) == (5.0, "0.1")
