from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.checks.training.loss_not_decreasing import LossNotDecreasing
from netdoctor.finding import Abstention, Finding, Severity
from netdoctor.recording import Recording
from tests.checks.builders import Builder
from tests.checks.training.trials import falls, flat


def stuck(steps: int = 60, **facts) -> Builder:
    facts = {"loss_family": "cross_entropy", "loss_lower_bound": 0.0, "classes": 10, **facts}
    return Builder(steps).optimizer("SGD").loss(flat(steps=steps)).facts(**facts)


def judged(build) -> list:
    return list(LossNotDecreasing().judge(build.done()))


def test_a_stuck_loss_is_an_error():
    (found,) = judged(stuck())
    assert found.severity is Severity.ERROR
    assert "2.3" in found.title
    assert "No experiment ran" in found.explanation
    assert found.evidence[0].limit == 1.0


@pytest.mark.parametrize(("steps", "fires"), [(29, False), (30, True)])
def test_a_short_run_cannot_tell(steps, fires):
    assert any(isinstance(item, Finding) for item in judged(stuck(steps))) is fires


def test_an_unfitted_tiny_batch_is_said():
    build = stuck().arm("overfit/own", reached=False).arm("overfit/adam 0.01", reached=False)
    (found,) = judged(build)
    assert found.severity is Severity.ERROR
    assert "Not even a tiny batch" in found.explanation


@pytest.mark.parametrize(("steps", "fires"), [(99, False), (100, True)])
def test_a_fitted_tiny_batch_asks_for_more_steps_and_less_alarm(steps, fires):
    found = judged(stuck(steps).arm("overfit/own", reached=False).arm("overfit/adam 0.01", reached=True))
    assert [f.severity for f in found] == [Severity.WARNING] * fires


def test_an_experiment_that_could_not_run_rules_out_nothing():
    (found,) = judged(stuck().arm("overfit/own", failure="x", reached=True))
    assert found.severity is Severity.ERROR
    assert "No experiment ran" in found.explanation


@pytest.mark.parametrize(("end", "says"), [(0.5, "better: 0.5"), (2.29, "no better")])
def test_other_rates_are_said(end, says):
    (found,) = judged(
        stuck().arm("trial/control", flat()).arm("trial/lr x10", falls(end)).arm("trial/lr x0.1", flat(3.0))
    )
    assert "lr x" not in found.explanation
    assert f"x10 does best, and {says}" in found.explanation


@pytest.mark.parametrize(
    "build",
    [
        stuck().loss(falls(1.0, steps=60)),
        stuck().loss(lambda s: 0.02 + 2.3 * math.exp(-3 * s)),
        stuck().loss(0.1),  # at its floor from the start
        stuck(pretrained=True),
        stuck().loss(math.nan),
        stuck().loss(2.3 * np.exp(np.arange(60) / 20)),  # loss-diverging's
        stuck().scalar("lr", 0.0),
    ],
)
def test_it_stays_silent(build):
    assert judged(build) == []


@pytest.mark.parametrize("fact", ["moving_target", "several_optimizers"])
def test_it_abstains_on_games(fact):
    (said,) = judged(stuck(**{fact: True}))
    assert isinstance(said, Abstention)


def test_a_loss_of_ones_own_counts_only_when_a_batch_cannot_be_fitted():
    build = stuck(loss_family="custom", loss_lower_bound=-math.inf)
    assert isinstance(judged(build)[0], Abstention)
    assert isinstance(judged(build.arm("overfit/own", reached=False))[0], Finding)


def test_looking_at_gradients_is_no_training():
    build = stuck()
    build.recording.optimizers.clear()
    assert judged(build) == []
    assert len(judged(build.facts(parameters_changed=True))) == 1  # updates by hand


def test_nothing_seen_nothing_said():
    assert list(LossNotDecreasing().judge(Recording())) == []
