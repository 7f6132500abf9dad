"""Captures a small training for the tests: the same taps as in a real run, around a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from netdoctor.capture.observer import Observer
from netdoctor.capture.step import TrainingStep
from netdoctor.capture.taps import Taps
from netdoctor.graph import StepGraph

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def captured(train: Callable[[], Any]) -> TrainingStep:
    """The training step of whatever `train` does."""
    return watched(train)[0]


def watched(train: Callable[[], Any]) -> tuple[TrainingStep, StepGraph]:
    """The training step and the graph of its first backward call."""
    observer = Observer()
    taps = Taps(observer)
    taps.install()
    try:
        train()
    finally:
        taps.remove()
    assert observer.containment.faults == []
    return observer.program.training_step(), observer.graphs[0]


def fit(
    model: nn.Module,
    loss: Loss,
    x: torch.Tensor,
    y: torch.Tensor,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.Adam(p, lr=5e-3),
    steps: int = 3,
    size: int = 32,
) -> TrainingStep:
    """The captured training of a model on consecutive batches of x and y."""

    def train() -> None:
        optimizer = make(model.parameters())
        for number in range(steps):
            rows = slice(number * size, (number + 1) * size)
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()

    return captured(train)


def mlp(inputs: int = 6, outputs: int = 3, width: int = 32) -> nn.Sequential:
    """A small network that can learn by heart."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))
