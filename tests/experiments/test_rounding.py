"""Half-precision weights beside float32 copies of them: where rounding holds the training back, and where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.numerics.rounding import CONTROL, MASTER, copies
from netdoctor.experiments.rounding import look, step_in_float32
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Recording, Series
from tests.experiments.capturing import captured


def trained(
    rate: float, dtype: torch.dtype = torch.bfloat16, warm: int = 0
) -> tuple[TrainingStep, Recording, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).to(dtype)
    x = torch.randn(24, 32, 16)
    y = (x @ torch.randn(16, 4)).argmax(-1)
    rates = [rate * min(1.0, (n + 1) / (warm + 1)) for n in range(100)]

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for n, now in enumerate(rates):
            optimizer.param_groups[0]["lr"] = now
            optimizer.zero_grad()
            F.cross_entropy(model(x[n % 24].to(dtype)).float(), y[n % 24]).backward()
            optimizer.step()

    step = captured(train)
    return step, Recording(scalars={"lr": Series(np.arange(100), np.array(rates))}), model


@pytest.mark.parametrize(("rate", "warm", "held_back"), [(2e-4, 0, True), (2e-4, 80, True), (1e-2, 0, False)])
def test_small_steps_round_away(rate: float, warm: int, held_back: bool) -> None:
    """After the captured steps of a warm-up both go on at the highest rate."""
    step, recording, model = trained(rate, warm=warm)
    before = [p.clone() for p in model.parameters()]
    recording.arms.update(look(recording, step, Budget(60)))
    found = copies(recording)
    assert found is not None, recording.arms
    assert found.worse(1.5, 0.05) is held_back
    assert (found.moved < 0.8) is held_back
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_float32_weights_are_not_asked() -> None:
    step, recording, _ = trained(2e-4, torch.float32)
    assert look(recording, step, Budget(60)) == {}


def test_both_arms_begin_alike() -> None:
    step, recording, _ = trained(2e-4)
    arms = look(recording, step, Budget(60))
    assert arms[CONTROL].losses[0] == arms[MASTER].losses[0]
    assert arms[CONTROL].losses.size == arms[MASTER].losses.size


def test_what_is_too_small_for_one_step_adds_up() -> None:
    """A step of 1/1024 of a weight of 1, of which bfloat16 keeps 1/128."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1 / 1024)
    step_in_float32(optimizer)
    for _ in range(16):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.tolist() == [1 - 16 / 1024] * 3
    assert weight.dtype is torch.bfloat16
