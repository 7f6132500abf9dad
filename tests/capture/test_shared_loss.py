"""Several optimizers: with losses of their own they follow different aims; on one backward they are as one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.capture.observing import observing, seed

Step = Callable[[Callable[[], Tensor], Callable[[], Tensor], Optimizer, Optimizer], None]


def shared(first: Callable[[], Tensor], second: Callable[[], Tensor], one: Optimizer, other: Optimizer) -> None:
    (first() + second()).backward()
    one.step()
    other.step()


def taking_turns(first: Callable[[], Tensor], second: Callable[[], Tensor], one: Optimizer, other: Optimizer) -> None:
    first().backward()
    one.step()
    other.zero_grad()
    second().backward()
    other.step()


def both_first(first: Callable[[], Tensor], second: Callable[[], Tensor], one: Optimizer, other: Optimizer) -> None:
    first().backward()
    second().backward()
    one.step()
    other.step()


@pytest.mark.parametrize(("step", "apart"), [(shared, False), (taking_turns, True), (both_first, True)])
def test_two_optimizers(step: Step, apart: bool) -> None:
    seed()
    encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 2)
    one, other = (torch.optim.SGD(model.parameters(), lr=0.01) for model in (encoder, decoder))
    with observing() as observation:
        for _ in range(40):
            x = torch.randn(6, 4)
            one.zero_grad()
            other.zero_grad()
            step(lambda: encoder(x).square().mean(), lambda: decoder(encoder(x)).square().mean(), one, other)  # noqa: B023
    assert observation.recording.facts["several_optimizers"] is apart


def test_one_optimizer() -> None:
    seed()
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with observing() as observation:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
    assert observation.recording.facts["several_optimizers"] is False


def test_optimizers_that_follow_one_another_do_not_work_against_each_other() -> None:
    seed()
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    with observing() as observation:
        for _ in range(2):  # a model, and then another one
            model = nn.Linear(4, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    assert observation.recording.facts["several_optimizers"] is False
