"""BatchNorms that were frozen on the way, and whose statistics move on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from netdoctor.capture.frozen_norms import Frozen
from tests.capture.observing import Observation, observing


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def fit(net: Net, shift: float, steps: int, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    used = optimizer or torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        used.zero_grad()
        net(torch.randn(32, 4) + shift).square().mean().backward()
        used.step()
    return used


def told(story: Callable[[Net], None]) -> list[tuple[int, str, float]]:
    torch.manual_seed(0)
    with observing() as observation:
        net = Net()
        story(net)
    return events(observation)


def events(observation: Observation) -> list[tuple[int, str, float]]:
    return [(e.step, e.detail, e.value) for e in observation.recording.events if e.kind == "frozen norm"]


@pytest.mark.parametrize("by_method", [True, False])
def test_a_second_phase(by_method: bool) -> None:
    def story(net: Net) -> None:
        fit(net, 0.0, 30)
        net.body.requires_grad_(False) if by_method else [
            p.__setattr__("requires_grad", False) for p in net.body.parameters()
        ]
        fit(net, 3.0, 30)

    ((step, path, drift),) = told(story)
    assert (step, path) == (30, "body.1")
    assert drift > 0.5


def test_the_same_optimizer_goes_on() -> None:
    def story(net: Net) -> None:
        optimizer = fit(net, 0.0, 30)
        net.body.requires_grad_(False)
        fit(net, 3.0, 30, optimizer)

    ((step, _, drift),) = told(story)
    assert step == 30
    assert drift > 0.5


def test_silent_in_evaluation_mode() -> None:
    def story(net: Net) -> None:
        fit(net, 0.0, 10)
        net.body.requires_grad_(False)
        net.body.eval()
        fit(net, 3.0, 10)

    assert told(story) == []


def test_silent_where_it_never_trained() -> None:
    def story(net: Net) -> None:
        net.body.requires_grad_(False)
        fit(net, 3.0, 10)

    assert told(story) == []


def test_silent_where_it_trains_again() -> None:
    def story(net: Net) -> None:
        fit(net, 0.0, 10)
        net.body.requires_grad_(False)
        fit(net, 3.0, 10)
        net.body.requires_grad_(True)
        fit(net, 3.0, 10)

    assert told(story) == []


def test_silent_where_the_script_moves_the_weights_itself() -> None:
    def story(net: Net) -> None:
        fit(net, 0.0, 10)
        net.body.requires_grad_(False)
        optimizer = fit(net, 3.0, 1)
        for _ in range(10):
            fit(net, 3.0, 1, optimizer)
            with torch.no_grad():
                net.body[1].weight.mul_(0.99)

    assert told(story) == []


def test_the_measure_is_the_change_of_what_the_norm_gives() -> None:
    norm = nn.BatchNorm1d(2, eps=0.0)
    norm.running_mean.copy_(torch.tensor([1.0, 1.0]))
    norm.running_var.copy_(torch.tensor([4.0, 4.0]))
    frozen = Frozen(0, torch.zeros(2), torch.ones(2), norm.weight.detach().clone(), None)
    values = torch.randn(200_000, 2)  # as before
    changed = (values - 1) / 2 - values
    assert frozen.drift(norm) == pytest.approx(float(changed.square().mean().sqrt()), rel=0.01)


def test_nothing_stays_of_requires_grad_() -> None:
    original = nn.Module.requires_grad_
    with observing():
        assert nn.Linear(2, 2).requires_grad_(False).weight.requires_grad is False
    assert nn.Module.requires_grad_ is original
