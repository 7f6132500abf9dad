"""Parameters that are set to train after their optimizer was built, and that nobody moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.capture.observing import observing


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


Step = Callable[[], None]


def run(net: Net, steps: int, *optimizers: torch.optim.Optimizer, then: Step = lambda: None) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        then()


def by_hand(net: Net) -> None:
    with torch.no_grad():
        for parameter in net.body.parameters():
            parameter -= 0.01 * parameter.grad


def told(second: Callable[[Net, torch.optim.Optimizer], None], frozen: bool = True) -> list[tuple[int, str]]:
    torch.manual_seed(0)
    with observing() as observation:
        net = Net()
        net.body.requires_grad_(not frozen)
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.01)
        run(net, 4, optimizer)
        second(net, optimizer)
        return [(e.step, e.detail) for e in observation.recording.events if e.kind == "unfrozen"]


def goes_on(net: Net, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    net.body.requires_grad_(True)
    run(net, steps, optimizer)


def test_a_body_that_is_unfrozen_and_not_held():
    assert told(goes_on) == [(4, "body.weight"), (4, "body.bias")]


def held(net: Net, optimizer: torch.optim.Optimizer) -> None:
    optimizer.add_param_group({"params": list(net.body.parameters())})
    goes_on(net, optimizer)


def another(net: Net, optimizer: torch.optim.Optimizer) -> None:
    net.body.requires_grad_(True)
    run(net, 4, optimizer, torch.optim.SGD(net.body.parameters(), lr=0.01))


def another_that_waits(net: Net, optimizer: torch.optim.Optimizer) -> None:
    """A rate of zero, as a warm-up begins with."""
    net.body.requires_grad_(True)
    run(net, 4, optimizer, torch.optim.SGD(net.body.parameters(), lr=0.0))


def moved_by_hand(net: Net, optimizer: torch.optim.Optimizer) -> None:
    net.body.requires_grad_(True)
    run(net, 4, optimizer, then=lambda: by_hand(net))


def one_gradient(net: Net, optimizer: torch.optim.Optimizer) -> None:
    """Left over from a look at it."""
    net.body.requires_grad_(True)
    run(net, 1, optimizer)
    inputs = torch.tanh(net.body(torch.randn(8, 4))).detach()
    for _ in range(4):
        optimizer.zero_grad()
        net.head(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "second",
    [
        held,
        another,
        another_that_waits,
        moved_by_hand,
        one_gradient,
        lambda n, o: goes_on(n, o, 2),
        lambda n, o: run(n, 4, o),
    ],
)
def test_other_stories(second):
    assert told(second) == []


def test_what_was_never_frozen_is_the_matter_of_the_first_step():
    assert told(goes_on, frozen=False) == []
