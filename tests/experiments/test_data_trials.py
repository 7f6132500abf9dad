"""Standardising and shuffling the data of captured steps, on trainings of which the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netdoctor.experiments import pairing, scaling
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm
from tests.capture.observing import Observation, observing, seed


def trained(x: Tensor, y: Tensor, lr: float = 0.05, outputs: int = 2) -> Observation:
    seed()
    model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, outputs))
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for batch in torch.randperm(len(x)).split(32)[:24]:
            optimizer.zero_grad()
            loss = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return observation


def separable(count: int = 800) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def scaled(observation: Observation) -> dict[str, Arm]:
    return scaling.trials(observation.recording, observation.step, Budget(60.0), lambda what: None)


def test_inputs_in_scale_are_not_tried() -> None:
    assert scaled(trained(*separable())) == {}


def test_standardised_inputs_train_where_raw_ones_do_not() -> None:
    x, y = separable()
    arms = scaled(trained(300 * x + 1000, y, lr=0.3))
    assert set(arms) == {"scaling/input", "scaling/control"}
    control, treated = arms["scaling/control"].losses, arms["scaling/input"].losses
    assert len(control) == len(treated) == scaling.STEPS
    assert treated[-10:].mean() < 0.5 * control[-10:].mean()


def test_losses_of_standardised_targets_are_told_in_the_script_s_unit() -> None:
    x, _ = separable()
    arms = scaled(trained(x, 500 + 100 * x[:, :1], lr=1e-4, outputs=1))
    assert set(arms) == {"scaling/target", "scaling/control"}
    assert arms["scaling/target"].losses[0] == pytest.approx(100.0**2, rel=0.3)
    assert arms["scaling/control"].losses[0] > 500.0**2


def paired(x: Tensor, y: Tensor) -> dict[str, Arm]:
    observation = trained(x, y)
    recording = observation.recording
    recording.arms["overfit/own"] = Arm("overfit/own", torch.ones(1).double().numpy(), facts={"reached": True})
    return pairing.trials(recording, observation.step, Budget(60.0), lambda what: None)


def test_true_pairs_are_easier_than_shuffled_ones() -> None:
    arms = paired(*separable())
    assert set(arms) == {"pairing/true", "pairing/shuffled", "pairing/shuffled again"}
    true, *shuffled = (float(arm.losses.mean()) for arm in arms.values())
    assert all(true < 0.85 * one for one in shuffled)


def test_pairs_that_were_lost_are_as_hard_as_shuffled_ones() -> None:
    x, y = separable()
    arms = paired(x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))])
    true, *shuffled = (float(arm.losses.mean()) for arm in arms.values())
    assert all(true == pytest.approx(one, rel=0.1) for one in shuffled)
    assert arms["pairing/shuffled"].losses.tolist() != arms["pairing/shuffled again"].losses.tolist()


def test_nothing_is_shuffled_where_nothing_fitted_a_tiny_batch() -> None:
    observation = trained(*separable())
    assert pairing.trials(observation.recording, observation.step, Budget(60.0), lambda what: None) == {}
