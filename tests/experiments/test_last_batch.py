"""What evaluation gets from the statistics of single batches: beside a second computation, and where nothing is asked."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.checks.structure.running_statistics import DRAWS
from netdoctor.experiments import last_batch
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import captured, fit

STEPS, SIZE = 6, 8
X, Y = torch.randn(STEPS * SIZE, 6, generator=torch.Generator().manual_seed(1)), torch.arange(STEPS * SIZE) % 3


def network(momentum: float | None, second: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(12, momentum=m) for m in (momentum, second)]
    return nn.Sequential(nn.Linear(6, 12), norms[0], nn.ReLU(), nn.Linear(12, 12), norms[1], nn.Linear(12, 3))


def trained(momentum: float | None, **options: float) -> tuple[nn.Sequential, dict[str, Arm]]:
    """The model, and what is found; nothing of it may have changed."""
    model = network(momentum)
    step = fit(model, F.cross_entropy, X, Y, steps=STEPS, size=SIZE)
    before = copy.deepcopy(model.state_dict())
    arms = last_batch.look(Recording(facts=dict(options)), step, Budget(30))
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    return model, arms


def by_hand(model: nn.Sequential, size: int) -> tuple[list[float], float]:
    """(losses per draw, loss with the average of the statistics), of a norm that is the first of the model."""
    hidden = [model[0](X[i : i + SIZE]).detach() for i in range(0, len(X), SIZE)]
    norm, momentum = model[1], model[1].momentum

    def loss(mean: torch.Tensor, variance: torch.Tensor, number: int) -> float:
        other = copy.deepcopy(model).eval()
        other[1].running_mean.copy_(mean)
        other[1].running_var.copy_(variance)
        rows = slice(number * SIZE, (number + 1) * SIZE)
        return F.cross_entropy(other(X[rows]), Y[rows]).item()

    mean, variance, losses = norm.running_mean, norm.running_var, []
    for number, batch in enumerate(hidden):
        mean = (1 - momentum) * mean + momentum * batch[:size].mean(0)
        variance = (1 - momentum) * variance + momentum * batch[:size].var(0)
        others = [(number + ahead) % STEPS for ahead in (1, 2, 3)]
        losses.append(float(np.mean([loss(mean, variance, other) for other in others])))
    whole = torch.stack([h.mean(0) for h in hidden]).mean(0), torch.stack([h.var(0) for h in hidden]).mean(0)
    return losses, float(np.mean([loss(*whole, number) for number in range(STEPS)]))


@pytest.mark.parametrize("size", [SIZE, 3])
@pytest.mark.parametrize("momentum", [0.5, 0.99])
def test_the_losses_are_those_of_a_computation_by_hand(momentum: float, size: int) -> None:
    model, arms = trained(momentum, last_batch=float(size))
    losses, averaged = by_hand(model, size)
    arm = arms[DRAWS]
    assert arm.losses.tolist() == pytest.approx(losses, rel=1e-4)
    assert float(arm.facts["averaged"]) == pytest.approx(averaged, rel=1e-4)
    assert (arm.facts["momentum"], arm.facts["module"], arm.facts["samples"]) == (momentum, "1", size)


@pytest.mark.parametrize("momentum", [0.49, 0.1, 0.001, None])
def test_a_smaller_momentum_is_not_asked_about(momentum: float | None) -> None:
    assert trained(momentum)[1] == {}


def test_losses_against_each_other_are_left_alone() -> None:
    assert trained(0.9, several_optimizers=True)[1] == {}


def test_a_norm_that_the_training_runs_in_evaluation_mode_is_left_alone() -> None:
    model = network(0.99)
    model[1].eval()
    assert last_batch.look(Recording(), fit(model, F.cross_entropy, X, Y, steps=STEPS, size=SIZE), Budget(30)) == {}


@pytest.mark.parametrize("anew", [False, True])
def test_statistics_that_were_taken_anew_are_near_the_average(anew: bool) -> None:
    model = network(0.99, 0.99)

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for number in range(24):
            rows = torch.arange(SIZE) + number % STEPS * SIZE
            optimizer.zero_grad()
            F.cross_entropy(model(X[rows]), Y[rows]).backward()
            optimizer.step()
        if anew:
            torch.optim.swa_utils.update_bn([X[i : i + SIZE] for i in range(0, len(X), SIZE)], model)

    arm = last_batch.look(Recording(), captured(train), Budget(30))[DRAWS]
    assert (float(arm.facts["apart"]) < 0.33) is anew


@pytest.mark.parametrize("shared", [False, True])
def test_several_losses_in_a_step(shared: bool) -> None:
    """Batches whose gradients add up pass one after the other; what two losses have in common passes once."""
    model = network(0.99)

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for number in range(STEPS):
            rows = slice(number * SIZE, (number + 1) * SIZE)
            optimizer.zero_grad()
            if shared:
                out = model(X[rows])
                F.cross_entropy(out, Y[rows]).backward(retain_graph=True)
                F.mse_loss(out[:, 0], X[rows, 0]).mul(1e-9).backward()
            else:
                for half in (rows, slice(rows.start, rows.start + 4)):
                    F.cross_entropy(model(X[half]), Y[half]).backward()
            optimizer.step()

    arm = last_batch.look(Recording(), captured(train), Budget(30))[DRAWS]
    if shared:
        assert arm.losses.tolist() == pytest.approx(by_hand(model, SIZE)[0], rel=1e-4)
    assert arm.failure == ""


def test_without_time_there_is_no_answer() -> None:
    step = fit(network(0.9), F.cross_entropy, X, Y, steps=STEPS, size=SIZE)
    assert "time" in last_batch.look(Recording(), step, Budget(0))[DRAWS].failure
