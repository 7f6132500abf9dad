"""Whole-number targets of one output: names of classes and numbers on a scale, told apart by what a classifier makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.checks.loss.class_numbers import named
from netdoctor.experiments.classes import NAMES, NUMBERS, compare
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Recording
from tests.capture.observing import observing

GENERATOR = torch.Generator().manual_seed(2)
X = torch.randn(1200, 4, generator=GENERATOR)
CENTRES = torch.randn(6, 4, generator=GENERATOR) * 3
NOMINAL = torch.randint(0, 6, (1200,), generator=GENERATOR)
SCALE = (1.5 * X[:, 0] + X[:, 1].sin() + 0.3 * torch.randn(1200, generator=GENERATOR) + 2.5).round().clamp(0, 5)
Loss = Callable[[Tensor, Tensor], Tensor]


def compared(x: Tensor, y: Tensor, loss: Loss = F.mse_loss, outputs: int = 1) -> tuple[dict[str, Arm], Recording]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, outputs))
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for rows in torch.arange(len(x)).split(50):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    recording = observation.recording
    arms = compare(recording, observation.step, Budget(60))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    recording.arms.update(arms)
    return arms, recording


def squeezed(made: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(made.squeeze(1), target)


@pytest.mark.parametrize("start", [0, 1])
def test_names_are_no_scale(start: int) -> None:
    arms, recording = compared(X + CENTRES[NOMINAL], NOMINAL.float() + start, squeezed)
    assert float(arms[NAMES].facts["right"]) > float(arms[NUMBERS].facts["right"]) + 0.2
    assert float(arms[NAMES].facts["beside"]) < 0.5
    assert named(recording) is not None


def test_a_scale_has_an_order() -> None:
    arms, recording = compared(X, SCALE[:, None])
    assert float(arms[NAMES].facts["beside"]) > 0.8
    assert named(recording) is None


@pytest.mark.parametrize(
    ("target", "loss", "outputs"),
    [
        (SCALE[:, None] + 0.5, F.mse_loss, 1),  # no whole numbers
        (SCALE[:, None] * 2, F.mse_loss, 1),  # with gaps
        (SCALE[:, None].clamp(0, 2), F.mse_loss, 1),  # three kinds
        (NOMINAL, F.cross_entropy, 6),
        (SCALE[:, None].expand(-1, 2), F.mse_loss, 2),
        (SCALE[:, None], lambda made, y: ((made - y) ** 2).mean(), 1),  # no call that could be exchanged
    ],
)
def test_other_targets_are_left_alone(target: Tensor, loss: Loss, outputs: int) -> None:
    assert compared(X, target, loss, outputs)[0] == {}


def test_a_prediction_that_is_not_what_the_layer_gives_is_an_answer() -> None:
    arms, recording = compared(X, SCALE[:25].repeat(48)[:, None], lambda made, y: F.mse_loss(made[::2], y[::2]))
    assert arms[NUMBERS].failure
    assert named(recording) is None
