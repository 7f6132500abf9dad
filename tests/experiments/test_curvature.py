"""Second derivatives on a copy: nets of straight pieces, and those whose derivative is 0 for other reasons."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netdoctor.checks.structure.zero_second_derivative import CURVATURE, ZeroSecondDerivative
from netdoctor.experiments.curvature import look
from netdoctor.experiments.sandbox import Budget, Sandbox
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Places
from netdoctor.finding import Finding, Fix, Severity
from netdoctor.recording import Recording
from tests.experiments.capturing import watched

Loss = Callable[[nn.Module, Tensor], Tensor]


def net(activation: Callable[[], nn.Module] = nn.ReLU, inputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 1))


def slope(u: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]


def equation(model: nn.Module, x: Tensor) -> Tensor:
    second = slope(slope(model(x), x), x)
    return (second + torch.sin(3 * x.detach())).square().mean() + model(torch.zeros(4, x.shape[1])).square().mean()


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    u = model(x)
    return (u - torch.sin(2 * x.detach())).square().mean() + 0.01 * slope(slope(u, x), x).square().mean()


def scores(model: nn.Module, x: Tensor) -> Tensor:
    score = -slope(model(x), x)
    return (slope(score.sum(1, keepdim=True), x).sum(1) + 0.5 * score.square().sum(1)).mean()


def critic(model: nn.Module, x: Tensor) -> Tensor:
    """A gradient penalty: first derivatives, whose gradient goes on to the weights."""
    return model(x).mean() + 10 * (slope(model(x), x).norm(dim=1) - 1).square().mean()


def forces(model: nn.Module, x: Tensor) -> Tensor:
    return (slope(model(x), x) + x.detach()).square().mean()


def inner_step(model: nn.Module, x: Tensor) -> Tensor:
    """Meta-learning: gradients with respect to weights."""
    weights = list(model.parameters())
    lost = (model(x) - x.detach()).square().mean()
    moved = torch.autograd.grad(lost, weights, create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in moved), weights, create_graph=True)
    return lost + 1e-3 * sum(g.square().sum() for g in again)


class Straight(nn.Module):
    """Curved along the first input alone, by a net beside one of straight pieces for what is no coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.curve = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)), net(nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.curve(x[:, :1]) * self.code(torch.ones(len(x), 1)) + x[:, 1:]


def across(model: nn.Module, x: Tensor) -> Tensor:
    """With respect to what the net is straight along by right: 0 with smooth activations as well."""
    y = x[:, 1:].detach().requires_grad_()
    u = model(torch.cat([x[:, :1], y], 1))
    return (slope(slope(u, y) + 0 * u * y, y) + u).square().mean()


def recorded(model: nn.Module, loss: Loss, inputs: int = 1) -> tuple[Recording, object]:
    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(8):
            x = torch.rand(32, inputs, requires_grad=True)
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()

    step, graph = watched(train)
    recording = Recording(graph=graph, graphs=[graph])
    recording.arms |= look(recording, step, Budget(60))
    return recording, step


def found_in(recording: Recording) -> list[Finding]:
    return [item for item in ZeroSecondDerivative().judge(recording) if isinstance(item, Finding)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


SICK: dict[str, tuple[Callable[[], nn.Module], Loss, int, Severity]] = {
    "an equation": (net, equation, 1, Severity.ERROR),
    "in place": (lambda: net(lambda: nn.ReLU(inplace=True)), equation, 1, Severity.ERROR),
    "leaky": (lambda: net(nn.LeakyReLU), equation, 1, Severity.ERROR),
    "hard": (lambda: net(nn.Hardtanh), equation, 1, Severity.ERROR),
    "an energy's score": (lambda: net(inputs=2), scores, 2, Severity.ERROR),
    "a penalty": (net, penalty, 1, Severity.WARNING),
}


@pytest.mark.parametrize("name", SICK)
def test_nets_of_straight_pieces(name: str) -> None:
    make, loss, inputs, severity = SICK[name]
    recording, _ = recorded(make(), loss, inputs)
    assert recording.arms[CURVATURE].facts["zeros"] == 1.0
    assert float(recording.arms[CURVATURE].facts["smooth"]) > 0
    (found,) = found_in(recording)
    assert found.severity is severity


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Loss, int]] = {
    "tanh": (lambda: net(nn.Tanh), equation, 1),
    "softplus": (lambda: net(nn.Softplus), equation, 1),
    "a critic": (lambda: net(inputs=2), critic, 2),
    "forces": (lambda: net(inputs=2), forces, 2),
    "meta-learning": (net, inner_step, 1),
    "straight by right": (Straight, across, 2),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_well(name: str) -> None:
    make, loss, inputs = HEALTHY[name]
    recording, _ = recorded(make(), loss, inputs)
    assert found_in(recording) == []


def test_the_net_that_is_straight_by_right_was_asked() -> None:
    recording, _ = recorded(Straight(), across, 2)
    assert recording.arms[CURVATURE].facts["smooth"] == 0.0


@pytest.mark.parametrize(("loss", "heard_second"), [(equation, True), (penalty, False)])
def test_a_smooth_copy_has_a_second_derivative(loss: Loss, heard_second: bool) -> None:
    recording, step = recorded(net(), loss)
    (found,) = found_in(recording)
    treatment = treatment_of(Case(step, recording, found, Fix("smooth-tanh", ""), Places(step)))
    assert treatment is not None
    assert treatment.measure is not None
    assert treatment.measure.second is heard_second
    bench = Bench(Sandbox(step), step.iterations)
    assert treatment.measure.of(bench) == 100
    with bench.stack:
        treatment.apply(bench)
        assert treatment.measure.of(bench) < treatment.measure.limit
