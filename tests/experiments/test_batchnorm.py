from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.batchnorm import bypass, bypass_batchnorm
from netdoctor.experiments.sandbox import Budget
from tests.experiments.capturing import captured

WITH, BYPASSED, MATCHED = (
    "batchnorm/with",
    "batchnorm/bypassed",
    "batchnorm/bypassed, matched initialisation",
)
DEPTH, WIDTH = 8, 48


def tower(gain: float) -> nn.Sequential:
    """Dense, BatchNorm, ReLU, eight times over; weights with standard deviation gain x sqrt(2 / fan)."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(DEPTH):
        layer = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / WIDTH))
        parts += [layer, nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(WIDTH, 3))


def training(model: nn.Module) -> TrainingStep:
    x, y = torch.randn(64, WIDTH), torch.arange(64) % 3

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return captured(train)


@pytest.mark.parametrize("gain", [6.0, 1 / 6])
def test_what_batchnorm_hides_comes_out(gain):
    arms = bypass(training(tower(gain)), Budget(60))
    assert list(arms) == [WITH, BYPASSED, MATCHED]
    expected = (DEPTH - 1) * math.log10(gain)
    assert abs(arms[WITH].facts["forward_decades"]) < 0.5
    assert arms[BYPASSED].facts["forward_decades"] == pytest.approx(expected, rel=0.2)
    assert arms[BYPASSED].facts["backward_decades"] == pytest.approx(expected, rel=0.25)
    assert arms[BYPASSED].facts["growth_per_layer"] == pytest.approx(gain, rel=0.2)
    assert abs(arms[MATCHED].facts["forward_decades"]) < 1
    assert all(arm.facts["finite"] and arm.facts["layers"] == DEPTH for arm in arms.values())


def test_a_sound_network_stays_in_bounds_without_batchnorm():
    arms = bypass(training(tower(1.0)), Budget(60))
    for arm in arms.values():
        assert abs(arm.facts["forward_decades"]) < 1
        assert len(arm.losses) == 20
        assert arm.losses[-1] < arm.losses[0]


def test_the_profile_is_what_autograd_gives():
    model = tower(1.0)
    step = training(model)
    profile = bypass(step, Budget(60))[BYPASSED].profile
    assert list(profile) == [str(3 * n) for n in range(DEPTH + 1)]

    fresh, outputs = tower(1.0), []
    x, y = step.iterations[0].backwards[0].entries[0].args[0].tensor, torch.arange(64) % 3
    values = x
    for layer in fresh:
        values = values if isinstance(layer, nn.BatchNorm1d) else layer(values)  # scale 1, shift 0
        if isinstance(layer, nn.Linear):
            values.retain_grad()
            outputs.append(values)
    F.cross_entropy(values, y).backward()
    for output, (activation, gradient) in zip(outputs, profile.values(), strict=True):
        assert activation == pytest.approx(float(output.detach().square().mean().sqrt()), rel=1e-4)
        assert gradient == pytest.approx(float(output.grad.square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize("affine", [True, False])
def test_scale_and_shift_remain(affine):
    norm = nn.BatchNorm2d(3, affine=affine)
    x = torch.randn(2, 3, 4, 4)
    expected = x
    if affine:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
        expected = x * norm.weight[None, :, None, None] + norm.bias[None, :, None, None]
    assert bypass_batchnorm(norm) == 1
    torch.testing.assert_close(norm(x), expected)
    assert not norm.running_mean.any()


def test_a_signal_beyond_the_numbers_is_not_finite():
    arms = bypass(training(tower(1e8)), Budget(60))
    assert arms[BYPASSED].facts["finite"] is False
    assert arms[BYPASSED].facts["forward_decades"] > 20
    assert arms[BYPASSED].facts["ended"] == "non-finite"
    assert arms[MATCHED].facts["finite"] is True


def test_without_batchnorm_there_is_nothing_to_do():
    assert bypass(training(nn.Sequential(nn.Linear(WIDTH, 3))), Budget(60)) == {}


def test_no_time_no_arms():
    assert bypass(training(tower(1.0)), Budget(0)) == {}


def test_a_loop_that_cannot_be_copied_is_a_reason():
    step = training(tower(1.0))
    step.lost = "the loop trains in spawned processes"
    arms = bypass(step, Budget(60))
    assert {name: arm.failure for name, arm in arms.items()} == {WITH: "the loop trains in spawned processes"}


def test_the_reader_gets_the_names_asked_for():
    model = tower(1.0)
    names = {child: f"encoder.{path}" for path, child in model.named_modules()}
    profile = bypass(training(model), Budget(60), names.__getitem__)[WITH].profile
    assert list(profile)[:2] == ["encoder.0", "encoder.3"]
