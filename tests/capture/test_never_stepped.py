"""An optimizer that never steps is known, also when it is gone before the end of the run."""

from __future__ import annotations

import gc

import torch
from torch import nn

from tests.capture.observing import observing


def without_steps(backwards: int) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
    for _ in range(backwards):
        optimizer.zero_grad()
        net(torch.randn(4, 3)).square().mean().backward()


def test_an_optimizer_of_a_function_that_returned() -> None:
    with observing() as watched:
        without_steps(10)
        gc.collect()
    recording = watched.recording
    assert [(o.type, o.steps) for o in recording.optimizers] == [("SGD", 0)]
    assert set(recording.optimizers[0].parameters) == {"weight", "bias"}
    assert recording.facts["parameters_changed"] is False


def test_one_that_accumulates_is_numbered_at_its_first_step() -> None:
    with observing() as watched:
        without_steps(2)
        gc.collect()
    assert watched.recording.optimizers == []
