"""Side terms: which part of a loss they are, in the ways in which people write it, and what a collapsed autoencoder shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from netdoctor.capture.step import Replay, TrainingStep
from netdoctor.checks.training.side_term import AS_IT_IS, LESS
from netdoctor.experiments.sandbox import Budget, Sandbox
from netdoctor.experiments.side_terms import left_of_constant, look, weighed
from netdoctor.recording import Recording
from tests.experiments.capturing import captured

X = torch.rand(64, 1, generator=torch.Generator().manual_seed(0)) * torch.linspace(-1, 1, 12)
Terms = tuple[Tensor, Tensor, Tensor]  # reconstruction, mean and log-variance of the posterior


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.logvar = nn.Linear(12, 16), nn.Linear(16, 2), nn.Linear(16, 2)
        self.decode = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 12))

    def forward(self, x: Tensor) -> Terms:
        hidden = torch.tanh(self.encode(x))
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        return self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)), mean, logvar


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Per sample, from the standard normal distribution."""
    return -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp(), dim=1)


def by_distributions(out: Terms, x: Tensor) -> Tensor:
    recon, mean, logvar = out
    prior = Normal(torch.zeros(2), torch.ones(2))
    return F.mse_loss(recon, x) + kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), prior).sum(1).mean()


def per_sample(out: Terms, x: Tensor) -> Tensor:
    return ((out[0] - x).square().mean(1) + divergence(*out[1:])).mean()


def weighted(out: Terms, x: Tensor) -> Tensor:
    return 2.0 * (0.5 * divergence(*out[1:]).mean() + F.mse_loss(out[0], x))


def bound(out: Terms, x: Tensor) -> Tensor:
    likelihood = -F.mse_loss(out[0], x)
    return -(likelihood - divergence(*out[1:]).mean())


def trained(loss: Callable[[Terms, Tensor], Tensor], steps: int = 3, model: nn.Module | None = None) -> TrainingStep:
    torch.manual_seed(0)
    net = model or Autoencoder()

    def train() -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(net(X), X).backward()
            optimizer.step()

    return captured(train)


def first_loss(step: TrainingStep, factor: float) -> float:
    sandbox = Sandbox(step)
    return float(
        Replay(sandbox.copies).loss(step.iterations[0].backwards[0], weighed(step.iterations, factor)).detach()
    )


@pytest.mark.parametrize(("loss", "weight"), [(by_distributions, 1), (per_sample, 1), (weighted, 2), (bound, 1)])
def test_the_divergence_goes_and_the_reconstruction_stays(loss: Callable[[Terms, Tensor], Tensor], weight: int) -> None:
    step = trained(loss)
    with torch.no_grad():
        whole, none, half = (first_loss(step, factor) for factor in (1.0, 0.0, 0.5))
    assert half == pytest.approx((whole + none) / 2)
    assert none / weight == pytest.approx(float(F.mse_loss(_recon(), X)), rel=1e-5)
    assert whole > none


def _recon() -> Tensor:
    torch.manual_seed(0)
    return Autoencoder()(X)[0].detach()


def two_comparisons(out: Terms, x: Tensor) -> Tensor:
    return F.mse_loss(out[0], x) + F.l1_loss(out[0], x)


def only_one(out: Terms, x: Tensor) -> Tensor:
    return F.mse_loss(out[0], x)


def made_of_outputs_alone(out: Terms, x: Tensor) -> Tensor:
    return out[0].square().mean() + divergence(*out[1:]).mean()


@pytest.mark.parametrize("loss", [two_comparisons, only_one, made_of_outputs_alone])
def test_losses_without_a_side_term(loss: Callable[[Terms, Tensor], Tensor]) -> None:
    assert weighed(trained(loss).iterations, 0.0) is None


def test_a_penalty_of_weights_is_none() -> None:
    torch.manual_seed(0)
    net = Autoencoder()

    def loss(out: Terms, x: Tensor) -> Tensor:
        return F.mse_loss(out[0], x) + 0.1 * net.encode.weight.square().sum()

    assert weighed(trained(loss, model=net).iterations, 0.0) is None


def test_a_sum_that_goes_on_through_a_layer_is_none() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(12, 12), nn.Linear(12, 12)

    def train() -> None:
        optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            hidden = first(X) + (first(X) * X)
            F.mse_loss(second(hidden), X).backward()
            optimizer.step()

    assert weighed(captured(train).iterations, 0.0) is None


def outweighed(out: Terms, x: Tensor) -> Tensor:
    return F.mse_loss(out[0], x) + 10 * divergence(*out[1:]).mean()


def balanced(out: Terms, x: Tensor) -> Tensor:
    return F.mse_loss(out[0], x) + 1e-3 * divergence(*out[1:]).mean()


def test_an_autoencoder_that_ignores_its_input_learns_with_little_of_the_term() -> None:
    arms = look(Recording(), trained(outweighed, steps=150), Budget(120))
    assert float(arms[AS_IT_IS].facts["left"]) >= 0.9
    assert float(arms[LESS].facts["left"]) <= 0.5
    assert len(arms[LESS].losses) == 180


def test_one_that_learns_is_not_looked_at() -> None:
    step = trained(balanced, steps=150)
    assert left_of_constant(Sandbox(step)) > 0.9  # before it was trained
    assert look(Recording(), step, Budget(120)) == {}
