"""Numbers of another device are read without waiting for it. There is no such device here: meta tensors stand for one, since no
value of theirs can be read at all."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture import late, tripwire
from netdoctor.capture.late import LateNumbers
from netdoctor.capture.observer import Observer
from netdoctor.capture.plain import PlainSteps
from tests.capture.observing import observing, seed


class Slow:
    """A transfer that arrives when it was asked three times."""

    def __init__(self, values):
        self.values, self.asked, self.waited = values.clone(), 0, False

    def arrived(self):
        self.asked += 1
        return self.asked > 2 or self.waited

    def wait(self):
        self.waited = True

    def read(self):
        assert self.waited or self.asked > 2
        return self.values.tolist()


def test_numbers_come_in_order_and_nothing_waits_for_them():
    came = []
    numbers = LateNumbers(lambda step, found: came.append((step, found)), Slow)
    numbers.put(3, [("loss", torch.tensor(1.5)), ("norm", torch.tensor([2.0]))])
    numbers.poll()
    numbers.put(4, [("loss", torch.tensor(math.inf))])
    numbers.poll()
    assert (came, bool(numbers)) == ([], True)
    numbers.poll()
    assert came == [(3, [("loss", 1.5), ("norm", 2.0)])]
    numbers.wait()
    assert came[1:] == [(4, [("loss", math.inf)])]
    assert not numbers


def test_a_host_that_runs_far_ahead_waits_for_the_oldest_step():
    numbers = LateNumbers(lambda step, found: None, Slow)
    for step in range(late.MOST + 1):
        assert not any(copy.waited for _, _, copy in numbers.under_way)
        numbers.put(step, [("loss", torch.tensor(0.0))])
    assert [copy.waited for _, _, copy in numbers.under_way][:2] == [True, False]


def test_a_plain_step_reads_no_value_of_another_device():
    """Reading a value of a meta tensor raises."""
    observer = Observer()
    light = PlainSteps(observer)
    sent = []
    light._late = LateNumbers(light._came_late, lambda values: sent.append(values) or Slow(torch.zeros(2)))
    parameter = nn.Parameter(torch.zeros(3, 2, device="meta"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    frame = sys._getframe()
    line = frame.f_lineno + 6
    light._events = [("backward", frame.f_code, line), ("step", id(optimizer)), ("end",)]
    light._places = [None] * 3
    light.series[light._events[0]] = observer.recorder.losses["loss"] = observer.recorder.scalar_series("kept")
    parameter.grad = torch.zeros(3, 2, device="meta")
    loss = parameter.sum()
    assert light.backward(loss, frame)
    assert light.before(optimizer)
    assert [(values.device.type, values.shape) for values in sent] == [("meta", (2,))]
    with pytest.raises(RuntimeError):
        tripwire.Gradients(optimizer.param_groups, {}).norm()


def train(steps, change):
    seed()
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        x = torch.randn(6, 5)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.randint(0, 3, (6,))).backward()
        change(step, model)
        optimizer.step()
    return model.state_dict()


def observed(monkeypatch, steps, change):
    """As on another device: what gradients hold is only known when the copy has arrived."""
    real = PlainSteps._stepping

    def elsewhere(self, optimizer):
        place = real(self, optimizer)
        place.look = None
        return place

    monkeypatch.setattr(PlainSteps, "_stepping", elsewhere)
    with observing() as observation:
        light = observation.observer.pattern
        light._late = LateNumbers(light._came_late, Slow)
        train(steps, change)
    return observation


def test_the_norms_of_late_steps_are_all_kept(monkeypatch):
    observation = observed(monkeypatch, 60, lambda step, model: None)
    norms = observation.recording.scalars["gradient norm"]
    assert norms.steps.tolist() == list(range(60))
    monkeypatch.undo()
    with observing() as alone:
        train(60, lambda step, model: None)
    assert norms.values.tolist() == pytest.approx(alone.recording.scalars["gradient norm"].values.tolist(), rel=1e-6)


def test_a_nan_that_is_heard_of_late_is_told_as_such(monkeypatch):
    def spoil(step, model):
        if step == 50:
            model.weight.grad[0, 0] = math.nan

    origin = observed(monkeypatch, 60, spoil).observer.origin
    assert (origin.step, origin.phase, origin.kind, origin.reproduced) == (50, "backward", "NaN", False)
    assert "only heard of after it" in origin.note


def test_after_a_jump_the_next_steps_are_looked_at_in_time(monkeypatch):
    """A gradient that grew a hundredfold: what follows is replayed where it breaks."""

    def spoil(step, model):
        if step == 44:
            model.weight.grad *= 100
        if step == 50:
            model.weight.grad[0, 0] = math.inf

    observation = observed(monkeypatch, 60, spoil)
    assert observation.observer.origin.step == 50
    assert "only heard of after it" not in observation.observer.origin.note
