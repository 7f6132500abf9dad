"""The learning-rate range test: a quadratic whose stable rates are known, and curves made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.experiments import range_test
from netdoctor.experiments.range_test import LEAST, NAME, STEPS, smoothed, sweep, told
from netdoctor.experiments.sandbox import Budget, Run
from tests.experiments.capturing import captured, fit

RATES = np.geomspace(1e-7, 10.0, STEPS)


def quadratic(rate: float = 0.01, stiffness: float = 1.0):
    """Gradient descent on stiffness * w²/2 · mean(x²): stable below 2 over the curvature, which is the stiffness."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    x = torch.ones(64, 1)
    loss = lambda out, _: 0.5 * stiffness * out.square().mean()  # noqa: E731
    return fit(model, loss, x, x, lambda p: torch.optim.SGD(p, lr=rate), steps=2)


@pytest.mark.parametrize("stiffness", [20.0, 200.0])
def test_divergence_lies_where_the_curvature_says(stiffness: float) -> None:
    arm = sweep(quadratic(stiffness=stiffness), Budget(60))[NAME]
    assert arm.failure == ""
    limit = 2 / stiffness
    assert 0.3 * limit < float(arm.facts["divergence"]) < 10 * limit
    assert float(arm.facts["suggested"]) < float(arm.facts["divergence"])
    assert 1e-3 * limit < float(arm.facts["steepest"]) < limit
    assert arm.facts["lr"] == 0.01
    assert len(arm.curves["lr"]) == len(arm.losses)


def test_the_range_goes_beyond_the_scripts_own_rate() -> None:
    arm = sweep(quadratic(rate=1e-8), Budget(60))[NAME]
    assert arm.curves["lr"][0] == pytest.approx(1e-11)
    arm = sweep(quadratic(rate=1.0), Budget(60))[NAME]
    assert arm.curves["lr"][0] == pytest.approx(range_test.LOW)


def test_groups_keep_their_proportions() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(32, 4), torch.randn(32, 1)

    def train() -> None:
        groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[2].parameters(), "lr": 1e-2}]
        optimizer = torch.optim.SGD(groups)
        for _ in range(2):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()

    iteration = range_test._at(captured(train).iterations[0], 0.5)
    assert [action.lrs for action in iteration.actions if action.kind == "step"] == [pytest.approx((0.05, 0.5))]


def test_a_known_curve() -> None:
    """Flat to 1e-3, down by 1 around 1e-2, up from 1 on."""
    log = np.log10(RATES)
    losses = 2 - 1 / (1 + np.exp(-4 * (log + 2))) + np.where(RATES > 1.0, 5.0, 0.0)
    facts = told(Run(losses.tolist()), RATES, 0.1).facts
    assert 1e-3 < float(facts["steepest"]) < 0.1
    assert 0.8 < float(facts["divergence"]) < 5.0
    assert float(facts["suggested"]) <= float(facts["lowest"]) / 10


def test_a_loss_that_no_rate_lowers() -> None:
    arm = told(Run([1.0] * STEPS), RATES, 0.1)
    assert math.isnan(float(arm.facts["suggested"]))
    assert math.isnan(float(arm.facts["steepest"]))
    assert math.isnan(float(arm.facts["divergence"]))
    assert arm.facts["says"] == "no rate lowers the loss; it never diverges; the script's own is 0.1"


def test_a_nan_ends_the_curve_and_is_the_divergence() -> None:
    losses = [*np.linspace(2.0, 1.0, 60).tolist(), math.nan]
    facts = told(Run(losses, "non-finite"), RATES[:61], 0.1).facts
    assert float(facts["divergence"]) == pytest.approx(RATES[59])  # the step that made it


@pytest.mark.parametrize(("steps", "says"), [(LEAST - 1, "steps ran"), (LEAST, "")])
def test_too_few_steps_say_nothing(steps: int, says: str) -> None:
    arm = told(Run(np.linspace(2.0, 1.0, steps).tolist(), "out of time"), RATES[:steps], 0.1)
    assert bool(arm.failure) is bool(says)
    assert says in arm.failure


def test_a_script_without_a_rate_is_left_alone() -> None:
    step = quadratic(rate=0.01)
    step.iterations = step.iterations[:1]
    step.iterations[0].actions = [a for a in step.iterations[0].actions if a.kind != "step"]
    assert "no learning rate" in sweep(step, Budget(60))[NAME].failure


def test_smoothing_is_a_mean_without_a_bias_at_its_start() -> None:
    assert smoothed(np.full(20, 3.0)) == pytest.approx(np.full(20, 3.0))
