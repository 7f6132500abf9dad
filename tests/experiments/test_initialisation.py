from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netdoctor.experiments.initialisation import match_initialisation


def spread(weight: torch.Tensor) -> float:
    return float(weight.detach().std())


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 200), st.integers(30, 200), st.floats(1e-6, 1e6))
def test_dense_weights_get_the_scale_of_their_fan_whatever_they_had(fan_in, units, scale):
    model = nn.Sequential(nn.Linear(fan_in, units), nn.ReLU(), nn.Linear(units, 40))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    assert match_initialisation(model) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert spread(model[0].weight) == pytest.approx(math.sqrt(2 / fan_in), rel=0.12)
    assert spread(model[2].weight) == pytest.approx(math.sqrt(1 / units), rel=0.12)  # no activation behind the last
    assert not model[0].bias.any()


@pytest.mark.parametrize(
    ("activation", "gain"),
    [(nn.ReLU(), math.sqrt(2)), (nn.GELU(), math.sqrt(2)), (nn.Tanh(), 5 / 3), (nn.Sigmoid(), 1.0), (nn.SELU(), 0.75)],
)
def test_the_gain_is_that_of_the_activation_behind_the_norm(activation, gain):
    model = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100), activation, nn.Linear(100, 2))
    match_initialisation(model)
    assert spread(model[0].weight) == pytest.approx(gain / 10, rel=0.05)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(16, 64, 3), 16 * 9),
        (nn.Conv1d(16, 64, 5, groups=4), 4 * 5),
        (nn.ConvTranspose2d(32, 64, 4, stride=2), 32 * 4),
    ],
)
def test_the_fan_of_convolutions(layer, fan_in):
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(4, 4))
    match_initialisation(model)
    assert spread(layer.weight) == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)


def test_zero_ends_of_branches_stay_unless_most_are_zero():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.zeros_(model[1].weight)
    match_initialisation(model)
    assert not model[1].weight.any()
    nn.init.zeros_(model[0].weight)
    match_initialisation(model)
    assert all(bool(layer.weight.any()) for layer in model)


def test_norms_embeddings_tied_and_frozen_weights_stay():
    model = nn.ModuleDict(
        {"table": nn.Embedding(20, 8), "norm": nn.LayerNorm(8), "frozen": nn.Linear(8, 8), "head": nn.Linear(8, 20)}
    )
    model["head"].weight = model["table"].weight
    model["frozen"].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert match_initialisation(model) == ["head.bias"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name != "head.bias")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_become_orthogonal(kind):
    model = kind(8, 16)
    match_initialisation(model)
    for block in model.weight_hh_l0.detach().split(16):
        torch.testing.assert_close(block @ block.T, torch.eye(16), atol=1e-5, rtol=0)


def test_it_draws_from_no_shared_generator_and_always_the_same():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    weights = []
    for _ in range(2):
        layer = nn.utils.skip_init(nn.Linear, 30, 30)
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
        match_initialisation(layer)
        weights.append(layer.weight.detach())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*weights)


def test_a_parametrised_weight_is_left_to_its_parametrisation():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    before = layer.weight.detach().clone()
    assert match_initialisation(layer) == ["bias"]
    assert torch.equal(layer.weight, before)
