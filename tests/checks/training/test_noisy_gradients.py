"""noisy-gradients, and the noise scale that it reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.checks.training.noisy_gradients import NoisyGradients
from netdoctor.experiments.noise import NAME, measure, noise_scale
from netdoctor.experiments.sandbox import Budget
from netdoctor.finding import Abstention, Finding, Severity
from netdoctor.recording import Arm, Recording, Series
from tests.experiments.capturing import fit

STEPS = np.arange(100)
STUCK = 2.3 + 0.01 * np.sin(7.0 * STEPS)
LEARNS = 2.3 * 0.95**STEPS


def recording(scale: float, losses: np.ndarray = STUCK, failure: str = "") -> Recording:
    facts = {"scale": scale, "batch": 8.0, "batches": 12.0}
    made = Recording(steps=100, losses={"loss": Series(STEPS, losses)})
    made.facts["loss_lower_bound"] = 0.0
    made.arms[NAME] = Arm(NAME, np.empty(0), facts=facts, failure=failure)
    return made


@pytest.mark.parametrize(
    ("scale", "fires"), [(79.9, False), (80.0, True), (4096.0, True), (4097.0, False), (math.inf, False)]
)
def test_far_above_the_batch(scale: float, fires: bool) -> None:
    found = list(NoisyGradients().judge(recording(scale)))
    assert [type(item) for item in found] == ([Finding] if fires else [])
    assert all(isinstance(item, Finding) and item.severity is Severity.ADVICE for item in found)


def test_the_batch_that_is_advised() -> None:
    (found,) = NoisyGradients().judge(recording(300.0))
    assert isinstance(found, Finding)
    assert "Use batches of 256, or add up the gradients of 32 batches" in found.fixes[0].says


def test_training_that_works_needs_no_advice() -> None:
    assert list(NoisyGradients().judge(recording(300.0, LEARNS))) == []


def test_what_could_not_be_measured_is_told() -> None:
    (said,) = NoisyGradients().judge(recording(300.0, failure="2 batches of one size were captured, 4 are needed"))
    assert isinstance(said, Abstention)
    assert said.reason.startswith("2 batches")


@pytest.mark.parametrize("scale", [5.0, 50.0])
def test_the_formula_recovers_a_known_scale(scale: float) -> None:
    """E|g_b|² = |G|² + S/b for batches of b samples, with S = scale · |G|²."""
    size, number = 8, 10
    assert noise_scale(1 + scale / size, 1 + scale / (size * number), size, number) == pytest.approx(scale)


def test_batches_that_agree_on_nothing_have_no_scale() -> None:
    assert noise_scale(10.0, 1.0, 8, 10) == math.inf
    assert noise_scale(1.0, 1.0, 8, 10) == 0.0


def test_the_noise_of_a_linear_model() -> None:
    """y = x·w + noise, gradient at w = 0 per sample: -2 y x, so the scale is tr Cov(2 y x) / |E 2 y x|²."""
    torch.manual_seed(0)
    size, width, sigma = 16, 4, 3.0
    x = torch.randn(24 * size, width)
    y = x[:, :1] + sigma * torch.randn(len(x), 1)
    model = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(model.weight)
    step = fit(model, F.mse_loss, x, y, lambda p: torch.optim.SGD(p, lr=1e-9), steps=12, size=size)
    arm = measure(Recording(), step, Budget(30))[NAME]
    expected = (width * (1 + sigma**2) + 2) - 1  # E|yx|² = σ² w + E(x1² |x|²) = σ² w + w + 2; |E yx|² = 1
    assert float(arm.facts["scale"]) == pytest.approx(expected, rel=0.6)
    assert (arm.facts["batch"], arm.facts["batches"]) == (16.0, 12.0)


def test_few_batches_say_nothing() -> None:
    x, y = torch.randn(96, 4), torch.randn(96, 1)
    step = fit(nn.Linear(4, 1), F.mse_loss, x, y, steps=3)
    assert measure(Recording(), step, Budget(30))[NAME].failure == "3 batches of one size were captured, 4 are needed"
