"""What an observation holds does not grow with the length of the training, of an evaluation, or of a loop that never trains."""

from __future__ import annotations

import gc
import math
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from netdoctor.capture import graphs
from netdoctor.capture.recorder import MAX_EVENTS, MAX_POINTS, Recorder, Schedule, SeriesRecorder
from tests.capture.observing import observing


def test_a_million_steps_are_sampled_some_fifty_times():
    schedule = Schedule()
    due = [step for step in range(1_000_000) if schedule.due(step)]
    assert due[:8] == list(range(8))
    assert 40 < len(due) < 100
    assert all(later <= 1.4 * earlier + 2 for earlier, later in pairwise(due))


def test_every_nth_step():
    schedule = Schedule(every=3)
    assert [step for step in range(10) if schedule.due(step)] == [0, 3, 6, 9]


@pytest.mark.slow
def test_a_series_of_a_million_steps():
    series = SeriesRecorder()
    for step in range(1_000_000):
        series.add(step, float(step))
    found = series.series()
    assert MAX_POINTS / 4 < len(found.steps) <= MAX_POINTS
    assert found.values.tolist() == found.steps.tolist()
    assert found.steps[0] == 0
    assert found.steps[-1] > 990_000
    gaps = {int(b - a) for a, b in pairwise(found.steps)}
    assert len(gaps) == 1


def test_a_series_that_turns_to_nan_keeps_its_past():
    """What came before the NaN is what tells why; a long tail of NaN must not push it out."""
    series = SeriesRecorder()
    for step in range(300_000):
        series.add(step, 1.0 if step < 5000 else math.nan)
    found = series.series()
    assert len(found.steps) <= MAX_POINTS
    finite = found.steps[[math.isfinite(v) for v in found.values]]
    assert len(finite) >= 10
    bad = found.steps[[math.isnan(v) for v in found.values]]
    assert bad[0] <= 5000 + 300_000 / MAX_POINTS * 4


def test_a_single_nan_is_never_thinned_away():
    series = SeriesRecorder()
    for step in range(100_000):
        series.add(step, math.nan if step == 77_777 else 1.0)
    assert math.isnan(series.series().values.sum())


def test_values_of_one_step_are_averaged():
    series = SeriesRecorder()
    for value in (1.0, 2.0, 6.0):
        series.add(0, value)
    series.add(1, 5.0)
    assert series.series().values.tolist() == [3.0, 5.0]
    assert series.last == 5.0


def test_events_are_kept_from_the_start_and_counted_for_ever():
    recorder = Recorder()
    for step in range(10_000):
        recorder.count("backward", step)
    assert len(recorder.events) == MAX_EVENTS
    assert recorder.events[0].step == 0
    assert recorder.counts == {"backward": 10_000}


def model():
    return nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 3))


def alive_inputs(net, passes, keep, grad):
    """How many of the inputs of that many passes are alive at the end, when the loop itself keeps only what `keep` returns."""
    inputs, kept = [], []
    with torch.set_grad_enabled(grad):
        for _ in range(passes):
            x = torch.randn(2000, 50)
            inputs.append(weakref.ref(x))
            kept.append(keep(net(x)))
            del x
    gc.collect()
    return sum(ref() is not None for ref in inputs)


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "with grad"])
@pytest.mark.parametrize("trained", [0, 1, 40])
def test_a_long_evaluation(grad, trained):
    """400 kB a pass: at most as much as the tape prunes at may be held, whatever the number of passes."""
    with observing() as observation:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(trained):
            net(torch.randn(4, 50)).sum().backward()
            optimizer.step()
        assert alive_inputs(net, 600, lambda out: out.mean().item(), grad) <= 400
        assert len(observation.observer.tape) < 2000


@pytest.mark.slow
def test_an_evaluation_that_collects_predictions():
    """A hundred predictions of a few bytes each must not hold the images that they were made from."""
    with observing():
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.randn(4, 50)).sum().backward()
        optimizer.step()
        assert alive_inputs(net, 800, lambda out: out[:1].clone(), False) <= 400


def evaluated_before_training(monkeypatch):
    """An evaluation of more operations than a graph may have, then one training step."""
    monkeypatch.setattr(graphs, "MAX_OPERATIONS", 200)
    with observing() as observation:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with torch.no_grad():
            for _ in range(100):
                net(torch.randn(1, 50)).argmax()
        values = len(observation.observer.graph._values)
        net(torch.randn(4, 50)).square().mean().backward()
        optimizer.step()
    return values, observation.recording


def test_a_long_evaluation_before_training_does_not_fill_the_graph(monkeypatch):
    assert evaluated_before_training(monkeypatch)[0] < 450


def test_a_long_evaluation_before_training_leaves_room_for_the_step(monkeypatch):
    assert evaluated_before_training(monkeypatch)[1].graph.loss is not None


def test_batches_of_a_long_training_are_let_go():
    with observing() as observation:
        net, batches = model(), []
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(120):
            x = torch.randn(4, 50)
            batches.append(weakref.ref(x))
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            del x
        gc.collect()
        assert sum(ref() is not None for ref in batches) <= 30
    assert len(observation.observer.program.iterations) <= 30


def test_large_batches_are_not_hoarded():
    """The captured batches are bounded in bytes, not only in number."""
    from netdoctor.capture.program import MAX_BYTES

    with observing() as observation:
        net, batches = nn.Linear(1000, 1), []
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
        for _ in range(20):
            x = torch.empty(8000, 1000).zero_()  # 32 MB
            batches.append(weakref.ref(x))
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            del x
        gc.collect()
        assert sum(ref() is not None for ref in batches) * 32e6 <= MAX_BYTES + 64e6
    assert observation.observer.program.iterations
