"""Whatever breaks inside of netdoctor, the training goes on bit for bit, and the fault is listed."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture import naming, statistics
from netdoctor.capture.containment import STRIKES, Containment
from netdoctor.capture.graphs import GraphBuilder
from netdoctor.capture.layers import LayerRecorder
from netdoctor.capture.observer import Observer
from netdoctor.capture.parameters import ParameterRecorder
from netdoctor.capture.pattern import Pattern
from netdoctor.capture.plain import PlainSteps
from netdoctor.capture.program import Program
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.tape import Tape
from netdoctor.capture.training import TrainingTaps
from netdoctor.session import Options, Session
from tests.capture.observing import seed


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def train():
    seed()
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    losses = []
    for step in range(12):
        model.train()
        optimizer.zero_grad()
        x = torch.randn(6, 5)
        if step == 11:
            x[0, 0] = float("nan")  # so that the search for the origin runs too
        loss = F.cross_entropy(model(x), torch.randint(0, 3, (6,))) + 1e-3 * model.head.weight.square().sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        model.eval()
        with torch.no_grad():
            model(torch.randn(3, 5))
    return [*losses, *model.state_dict().values(), torch.get_rng_state()]


def methods(owner):
    """Names of the methods that our code enters; properties are left out, since they only say what is known."""
    return [
        name
        for name, value in vars(owner).items()
        if inspect.isfunction(value) and (not name.startswith("__") or name == "__len__")
    ]


OWNERS = [
    Observer,
    TrainingTaps,
    LayerRecorder,
    ParameterRecorder,
    Pattern,
    PlainSteps,
    GraphBuilder,
    Tape,
    Program,
    Recorder,
    naming.ModuleNames,
]
# What only hands the user's call on: not work of ours that could fail, but the way to the user's own.
CALLS = ("call_module", "ours", "_leave")
HANDS_ON = {*((Observer, name) for name in CALLS), (Tape, "__len__")}
ENTRIES = [(o, name) for o in OWNERS for name in methods(o) if (o, name) not in HANDS_ON]


class Broken(Exception):
    pass


@pytest.fixture(scope="module")
def alone():
    return train()


@pytest.mark.parametrize(
    ("owner", "name"),
    [pytest.param(o, n, id=f"{o.__name__}.{n}") for o, n in ENTRIES],
)
def test_a_broken_method(monkeypatch, alone, owner, name):
    calls = []

    def broken(*args, **kwargs):
        calls.append(name)
        raise Broken("on purpose")

    session = Session(Options(experiments=False))
    monkeypatch.setattr(owner, name, broken)
    try:
        session.start()
        try:
            watched = train()
        finally:
            session.stop()
        report = session.report()
    finally:
        session._taps.remove()
    assert all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(alone, watched, strict=True))
    if calls:
        assert any("Broken" in crash.error for crash in report.crashes), report.crashes


@pytest.mark.parametrize(
    "name", ["floats", "quick_moments", "batch_spread", "units_active", "distinct_rows", "strided"]
)
def test_a_broken_statistic(monkeypatch, alone, name):
    def broken(*args, **kwargs):
        raise Broken("on purpose")

    session = Session(Options(experiments=False))
    monkeypatch.setattr(statistics, name, broken)
    session.start()
    try:
        watched = train()
    finally:
        session.stop()
    assert all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(alone, watched, strict=True))
    assert session.recording.faults


def test_a_place_that_keeps_failing_is_switched_off():
    containment, calls = Containment(), []

    def fails():
        calls.append(1)
        raise Broken("on purpose")

    for _ in range(10):
        assert containment.run("here", fails) is None
    assert len(calls) == STRIKES
    (fault,) = containment.faults
    assert (fault.where, fault.count) == ("here", STRIKES)
    assert "Broken: on purpose" in fault.error
    assert "test_containment.py" in fault.error


def test_what_works_is_not_switched_off():
    containment = Containment()
    assert [containment.run("here", lambda n: n + 1, n) for n in range(5)] == [1, 2, 3, 4, 5]
    assert containment.faults == []


def test_an_interrupt_is_the_users():
    with pytest.raises(KeyboardInterrupt):
        Containment().run("here", interrupted)


def interrupted():
    raise KeyboardInterrupt
