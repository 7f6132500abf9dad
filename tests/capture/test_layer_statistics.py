"""Outputs that are held and measured together tell the same as outputs that are measured one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netdoctor.capture.naming import SEPARATOR
from netdoctor.recording import Role, Stat
from tests.capture.observing import observing


class Block(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.act, self.last = nn.ReLU(inplace=inplace), nn.Sigmoid()

    def forward(self, x):
        return self.last(self.second(self.act(self.first(x))))


def recorded(inplace=False, steps=14, model=None):
    torch.manual_seed(0)
    model = model or Block(inplace)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with observing(every=1) as observation:
        observation.observer.names.add_root(model)
        for step in range(steps):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        held = observation.observer.layers.statistics
        probes = observation.observer.layers._probes.values()
        stays = {probe.site.module.rpartition(SEPARATOR)[2]: probe.stays for probe in probes}
    assert held._outputs == held._gradients == []
    return observation.recording, stays


@pytest.mark.parametrize("inplace", [False, True])
def test_held_or_not_the_numbers_are_the_same(monkeypatch, inplace):
    together, stays = recorded(inplace)
    assert stays["first"] is not inplace  # its output is overwritten where the activation works in place
    assert stays["second"] is stays["act"] is True
    monkeypatch.setattr("netdoctor.capture.layer_statistics.HELD", 0)
    alone, never = recorded(inplace)
    assert set(never.values()) == {None}
    assert together.tracks.keys() == alone.tracks.keys()
    for key, track in alone.tracks.items():
        same = together.tracks[key]
        assert same.steps.tolist() == track.steps.tolist(), key
        assert np.allclose(same.values, track.values, rtol=1e-3, atol=1e-5, equal_nan=True), key


def test_a_layer_that_starts_to_be_overwritten_is_measured_at_once_from_then_on():
    class Turning(Block):
        calls = 0

        def forward(self, x):
            y = self.first(x)
            Turning.calls += 1
            y = y.relu_() if Turning.calls > 4 else y.relu()
            return self.last(self.second(self.act(y)))

    made, stays = recorded(model=Turning(False))
    assert stays["first"] is False
    (track,) = [
        t
        for (s, stat), t in made.tracks.items()
        if s.module.endswith("first") and (s.role, stat) == (Role.OUTPUT, Stat.RMS)
    ]
    assert track.steps.tolist() == [step for step in range(14) if step != 4]  # overwritten before it was known


def test_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr("netdoctor.capture.layer_statistics.HELD", 40)  # a layer's output has 30 numbers
    made, _ = recorded()
    for (site, stat), track in made.tracks.items():
        if (site.role, stat) == (Role.OUTPUT, Stat.RMS):
            assert track.steps.tolist() == list(range(14))
