"""Reading every layer's output finds what never reaches the loss or a gradient, and leaves alone what is meant to be there."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netdoctor
from netdoctor.capture.exact import FAULTS, LayerOutputs
from netdoctor.capture.observer import Observer
from netdoctor.judging import Options
from netdoctor.session import FindingError
from tests.capture.observing import seed


class Scale(nn.Module):
    """Overflows for large inputs."""

    def forward(self, x):
        return torch.exp(x)


class Masked(nn.Module):
    """Puts infinities where no attention is to go, as a layer of its own."""

    def forward(self, x):
        return x.masked_fill(torch.eye(x.shape[-1], dtype=torch.bool), -math.inf)


class Squashed(nn.Module):
    """An Inf becomes a 0 that no gradient comes through."""

    def __init__(self):
        super().__init__()
        self.body, self.scale, self.head = nn.Linear(5, 5), Scale(), nn.Linear(5, 3)

    def forward(self, x):
        gate = 1 / (1 + self.scale(x.detach()))
        return self.head(torch.relu(self.body(x)) * gate)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mask, self.head = nn.Linear(5, 5), Masked(), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.softmax(self.mask(self.body(x[:5])), -1))


def train(model, at=None, exact=True, steps=40, **options):
    seed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    with netdoctor.watch(model, optimizer, exact=exact, options=Options(experiments=False), **options) as doctor:
        for step in range(steps):
            x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
            if step == at:
                x[2, 1] = 200.0
            optimizer.zero_grad()
            out = model(x)
            loss = F.cross_entropy(out, y[: len(out)])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return doctor, losses


@pytest.mark.parametrize("at", [1, 15, 37])  # watched in full, neither measured nor plain, plain
def test_an_overflow_that_nothing_else_sees(at):
    seed()
    doctor, losses = train(Squashed(), at)
    assert all(map(math.isfinite, losses))
    origin = doctor.recording.origin
    assert (origin.operation, origin.kind, origin.step, origin.samples) == ("exp", "Inf", at, (2,))
    assert origin.module.endswith("scale")
    assert origin.reproduced
    assert [f.check for f in doctor.report().findings if f.check.startswith("non-finite")]


def test_without_it_the_overflow_is_not_seen():
    seed()
    assert train(Squashed(), 37, exact=False)[0].recording.origin is None


def test_a_mask_is_no_fault():
    seed()
    doctor, _ = train(Attention())
    assert doctor.recording.origin is None
    assert doctor.recording.faults == []


def test_the_training_is_the_same():
    results = []
    for exact in (False, True):
        seed()
        model = Squashed()
        _, losses = train(model, 37, exact)
        results.append([*losses, *model.head.weight.flatten().tolist()])
    assert results[0] == results[1]


def test_raising_stops_at_the_very_step():
    seed()
    with pytest.raises(FindingError, match="exp"):
        train(Squashed(), 37, on_finding="raise")


def test_a_fault_of_ours_is_contained(monkeypatch):
    def broken(*_):
        raise ValueError("on purpose")

    monkeypatch.setattr(LayerOutputs, "_read", broken)
    seed()
    doctor, _ = train(Squashed())
    assert [(fault.where, fault.count) for fault in doctor.recording.faults] == [("layer output", FAULTS)]


def test_no_value_of_another_device_is_waited_for():
    """Reading a value of a meta tensor raises, so that one stands for a device that is still at work."""
    observer = Observer(exact=True)
    layer = nn.Linear(2, 2)
    observer.outputs._read(layer, torch.zeros((), device="meta"))
    assert observer.outputs.bad is None
    assert [value.is_meta for _, value in observer.outputs.there] == [True]
