"""Steps on one sample at a time: which of them lower their loss, and whose gradient is out of line."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.single_sample import NAME, look
from netdoctor.recording import Recording
from tests.experiments.capturing import fit, mlp

SGD = lambda p: torch.optim.SGD(p, lr=1e-3)  # noqa: E731


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    return x, x[:, :3] * 2


def test_each_step_lowers_its_own_loss() -> None:
    arm = look(Recording(), fit(mlp(), F.mse_loss, *data(), SGD), Budget(60))[NAME]
    assert len(arm.losses) == 16
    assert arm.facts["lowered"] == 1.0
    assert (arm.curves["after"] < arm.losses).all()
    assert (arm.facts["far"], arm.facts["idle"], arm.facts["broken"], arm.facts["verdict"]) == ("", "", "", "passed")


def test_losses_and_gradients_are_those_of_the_samples() -> None:
    x, y = data()
    torch.manual_seed(1)
    model = mlp()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    arm = look(Recording(), fit(model, F.mse_loss, x, y, SGD), Budget(60))[NAME]
    plain = mlp()
    plain.load_state_dict(start)
    loss = F.mse_loss(plain(x[3:4]), y[3:4])
    loss.backward()
    norm = torch.cat([p.grad.reshape(-1) for p in plain.parameters() if p.grad is not None]).norm()
    assert arm.losses[3] == pytest.approx(loss.item(), rel=1e-5)
    assert arm.curves["gradient"][3] == pytest.approx(norm.item(), rel=1e-5)


def test_a_sample_that_pulls_too_hard_is_named() -> None:
    x, y = data()
    y = y.clone()
    y[5] = 1e4
    assert look(Recording(), fit(mlp(), F.mse_loss, x, y, SGD), Budget(60))[NAME].facts["far"] == "5"


def test_a_sample_that_is_not_finite_is_named() -> None:
    x, y = data()
    y = y.clone()
    y[7] = torch.nan
    arm = look(Recording(), fit(mlp(), F.mse_loss, x, y, SGD), Budget(60))[NAME]
    assert (arm.facts["broken"], arm.facts["verdict"]) == ("7", "failed")


def test_steps_that_overshoot_on_their_own_sample() -> None:
    arm = look(Recording(), fit(mlp(), F.mse_loss, *data(), lambda p: torch.optim.SGD(p, lr=30.0)), Budget(60))[NAME]
    assert float(arm.facts["lowered"]) < 0.5


def test_samples_that_batchnorm_mixes_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    assert look(Recording(), fit(model, F.mse_loss, *data(), SGD), Budget(60)) == {}
