"""The warning of `learning-rate-too-high` for a training that works: each limit at, below and above it."""

from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.training.learning_rate_too_high import LearningRateTooHigh
from netdoctor.experiments.learning_rate import hasty
from netdoctor.finding import Finding, Severity, Verdict
from netdoctor.recording import Recording
from tests.checks.training.trials import falls, network

LINE = "opt = torch.optim.AdamW(net.parameters(), lr=cfg.lr)"


def judged(own: np.ndarray, lower: np.ndarray, end: float = 1.5) -> list[Finding]:
    """What is said of a run that ends at `end`, from 2.3, with these losses of the two arms."""
    build = network(0.03, line=LINE).loss(falls(end, steps=60))
    build.arm("rates/own", own, lr=0.5).arm("rates/x0.1", lower, lr=0.05)
    return [found for found in LearningRateTooHigh().judge(build.done()) if isinstance(found, Finding)]


def test_a_tenth_that_learns_far_more_is_a_warning() -> None:
    (found,) = judged(falls(1.8, steps=120), falls(0.5, steps=120))
    assert found.severity is Severity.WARNING
    assert found.title == "the learning rate 0.5 slows the training down: at 0.05 it learns far more"
    assert found.location.line == 7
    (fix,) = found.fixes
    assert "lr=0.05" in fix.code
    assert fix.trial is not None
    assert fix.trial.verdict is Verdict.CURED
    assert found.evidence[0].measured > found.evidence[0].limit
    assert found.evidence[1].measured < found.evidence[1].limit


@pytest.mark.parametrize(
    ("own", "lower", "end", "fires"),
    [
        (1.8, 0.90, 1.5, True),  # it loses 60.9 %
        (1.9, 0.93, 1.5, False),  # 59.6 %
        (1.2, 0.59, 1.5, True),  # half of what the own rate leaves
        (1.2, 0.61, 1.5, False),
        (1.8, 0.79, 1.2, True),  # two thirds of what the whole run ended at
        (1.8, 0.81, 1.2, False),
    ],
)
def test_limits(own: float, lower: float, end: float, fires: bool) -> None:
    assert bool(judged(falls(own, steps=120), falls(lower, steps=120), end)) is fires


@pytest.mark.parametrize(("steps", "fires"), [(89, False), (90, True)])
def test_short_arms_say_nothing(steps: int, fires: bool) -> None:
    assert bool(judged(falls(1.8, steps=steps), falls(0.3, steps=120))) is fires
    assert bool(judged(falls(1.8, steps=120), falls(0.3, steps=steps))) is fires


@pytest.mark.parametrize("own", [np.full(120, np.nan), falls(-0.5, steps=120)])
def test_arms_without_shares_say_nothing(own: np.ndarray) -> None:
    assert judged(own, falls(0.3, steps=120)) == []


def run(end: float, update: float) -> Recording:
    return network(update).loss(falls(end, steps=60)).done()


@pytest.mark.parametrize(
    ("end", "update", "asked"),
    [(1.5, 0.011, True), (1.5, 0.009, False), (0.55, 0.011, True), (0.45, 0.011, False)],
)
def test_only_hasty_runs_with_loss_left_are_asked(end: float, update: float, asked: bool) -> None:
    """Updates of 1 % of the weights per step, and a quarter left of how the run began, the median of its first fifth: 2.0."""
    assert hasty(run(end, update)) is asked
