from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from netdoctor.checks.processes.rank_imbalance import RankImbalance
from netdoctor.finding import Finding
from netdoctor.recording import Recording, Series


def judged(*losses: Callable[[int], float], steps: int = 20) -> list[Finding]:
    at = np.arange(steps)
    series = {
        f"loss (rank {rank})": Series(at, np.array([loss(int(s)) for s in at])) for rank, loss in enumerate(losses)
    }
    return list(RankImbalance().judge(Recording(steps=steps, scalars=series)))


def noisy(scale: float, seed: int) -> Callable[[int], float]:
    draws = np.random.default_rng(seed).lognormal(0.0, 0.3, 1000)
    return lambda step: float(scale * 0.95**step * draws[step])


@pytest.mark.parametrize(("scale", "fires"), [(1.0, False), (2.0, False), (5.0, True), (0.1, True)])
def test_one_of_four_is_far_off(scale: float, fires: bool) -> None:
    found = judged(noisy(1, 0), noisy(1, 1), noisy(scale, 2), noisy(1, 3))
    assert bool(found) is fires
    if fires:
        assert "rank 2" in found[0].title


def test_of_two_the_larger_one_is_named() -> None:
    (finding,) = judged(noisy(1, 0), noisy(8, 1))
    assert "rank 1" in finding.title


@pytest.mark.parametrize(("steps", "fires"), [(7, False), (8, True)])
def test_the_number_of_steps(steps: int, fires: bool) -> None:
    assert bool(judged(lambda s: 1.0, lambda s: 9.0, steps=steps)) is fires


def test_ratios_that_change_sides() -> None:
    assert judged(lambda s: 1.0, lambda s: 9.0 if s % 2 else 0.1) == []


def test_a_loss_that_is_not_finite_on_one_rank() -> None:
    (finding,) = judged(noisy(1, 0), lambda s: float("nan") if s == 12 else 1.0, noisy(1, 2))
    assert "rank 1 is not finite at step 12" in finding.title
    assert finding.first_step == 12


def test_a_loss_that_is_not_finite_anywhere_is_not_this() -> None:
    assert judged(lambda s: float("nan") if s > 5 else 1.0, lambda s: float("nan") if s > 5 else 1.0) == []


def test_negative_losses() -> None:
    assert judged(lambda s: -1.0, lambda s: -9.0) == []


def test_one_process() -> None:
    assert judged(noisy(1, 0)) == []
