"""How many samples the last batch before an evaluation held, on the long and the short way through a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.observing import observing, seed

STEPS = 60  # most of them plain


def run(momentum: float | None, evaluated: bool, sizes: list[int], more: int = 0, steps: int = STEPS) -> float:
    """The fact after `steps` on batches of these sizes, over and over, and `more` after the last evaluation."""
    seed()
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(size: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(size, 5)), torch.randint(0, 3, (size,))).backward()
        optimizer.step()

    with observing() as observation:
        for _ in range(steps // len(sizes)):
            model.train()
            for size in sizes:
                step(size)
            if evaluated:
                model.eval()
                with torch.no_grad():
                    model(torch.randn(50, 5))
                    model(torch.randn(20, 5))
        model.train()
        for _ in range(more):
            step(16)
    return float(observation.recording.facts["last_batch"])


@pytest.mark.parametrize("epoch", [4, 5, 30])
@pytest.mark.parametrize("momentum", [0.5, 0.99])
def test_the_last_batch_of_an_epoch(momentum: float, epoch: int) -> None:
    assert run(momentum, True, [16] * (epoch - 1) + [3]) == 3


@pytest.mark.parametrize("steps", [1, 2, 6, 12, 20])
def test_in_steps_that_are_measured_or_kept(steps: int) -> None:
    assert run(0.9, True, [16] * (steps - 1) + [3], steps=steps) == 3


def test_it_is_that_before_the_last_evaluation_wherever_the_training_stops() -> None:
    assert run(0.9, True, [16, 16, 3], more=2) == 3


def test_without_an_evaluation_it_is_that_at_the_end() -> None:
    assert run(0.9, False, [3, 16, 16], more=1) == 16
    assert run(0.9, False, [16, 16, 3]) == 3


@pytest.mark.parametrize("momentum", [0.49, 0.1, None])
def test_nobody_asks_where_momentum_is_usual(momentum: float | None) -> None:
    assert run(momentum, True, [16, 16, 3]) == 0
