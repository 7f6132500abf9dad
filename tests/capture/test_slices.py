"""Modules that a model reaches through a slice of their container keep the names that the model has for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.observing import observing, seed


class InALoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return self.convs[-1](x)


class OfASequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))

    def forward(self, x):
        return self.net[2:](torch.relu(self.net[:2](x)))


class Kept(nn.Module):
    """The slice of another model's layers, as one takes a part of a pretrained one."""

    def __init__(self, other):
        super().__init__()
        self.stem, self.head = other[:2], nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.stem(x))


def names(model, steps=12):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (InALoop, ["convs.0", "convs.1", "convs.2", "convs.3"]),
        (OfASequence, ["net.0", "net.1", "net.2", "net.3"]),
    ],
)
def test_slices_in_forward(kind, expected):
    seed()
    with observing() as observation:
        names(kind())
    linear = [layer for layer in observation.recording.layers if layer.weight]
    assert [layer.path for layer in linear] == expected
    assert len({layer.model for layer in linear}) == 1


def test_a_slice_that_is_kept_is_a_part_of_its_new_owner():
    seed()
    other = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    with observing() as observation:
        names(Kept(other))
    assert [layer.path for layer in observation.recording.layers if layer.weight] == ["stem.0", "stem.1", "head"]


def test_a_slice_of_layers_that_were_built_under_observation_is_a_part_of_its_new_owner():
    seed()
    with observing() as observation:
        other = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        names(Kept(other))
    assert [layer.path for layer in observation.recording.layers if layer.weight] == ["stem.0", "stem.1", "head"]
