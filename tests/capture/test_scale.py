"""Models of ten thousand modules or a billion parameters, and trainings of a million steps: time and memory stay in proportion."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from netdoctor import recordingfile
from netdoctor.capture.assembly import assemble
from netdoctor.capture.observer import Observer
from netdoctor.capture.recorder import FIRST_STEPS, MAX_EVENTS, MAX_POINTS
from netdoctor.capture.training import TrainingTaps
from netdoctor.recording import Role, Site, Stat
from tests.capture.observing import observing, seed


def wide(modules: int) -> nn.Sequential:
    """A flat model of so many modules, containers included."""
    return nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(modules // 3)])


def seconds(modules: int) -> float:
    """CPU time of observing two steps of such a model, and of making the recording."""
    seed()
    model, x = wide(modules), torch.randn(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    started = time.process_time()
    with observing() as observation:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    recording = observation.recording
    assert len(recording.layers) == 2 * (modules // 3)
    return time.process_time() - started


@pytest.mark.slow
def test_ten_thousand_modules_take_ten_times_as_long_as_a_thousand() -> None:
    """Linear in the number of modules; with one square term it would be a hundred times."""
    seconds(300)  # what is loaded and cached once
    small = seconds(1_000)
    assert seconds(10_000) < 25 * small


@pytest.mark.slow
def test_a_billion_parameters_on_the_meta_device() -> None:
    """No byte of such a model can be read: it is said, and nothing is tried."""
    started = time.process_time()
    with observing() as observation, torch.device("meta"):
        model = nn.Sequential(nn.Linear(32_768, 16_384), nn.ReLU(), nn.Linear(16_384, 32_768))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.empty(8, 32_768)).square().mean().backward()
        optimizer.step()
    assert sum(p.numel() for p in model.parameters()) > 1e9
    assert time.process_time() - started < 20
    assert any("meta device" in spot for spot in observation.recording.blind_spots)


@pytest.mark.slow
def test_a_million_steps_leave_a_recording_of_bounded_size() -> None:
    """What a million steps would tell the recorder, without the training that takes a day."""
    observer = Observer()
    recorder, sizes = observer.recorder, {}
    sites = [Site(f"layer{n}", "Linear", Role.OUTPUT) for n in range(5)]
    for step in range(1_000_000):
        observer.step = step
        recorder.loss("train.py:1", step, 1.0 / (step + 1))
        recorder.scalar("lr", step, 0.1)
        if step < 5_000 or step % 100 == 0:  # a count is a count
            recorder.count("backward", step)
        if observer.schedule.due(step):
            recorder.step = step
            for site in sites:
                recorder.put(site, Stat.UNIT_ACTIVE, torch.ones(16))
            recorder.flush(step)
        if step in (99_999, 999_999):
            made = assemble(observer, TrainingTaps(observer), "", "", "finished")
            sizes[step] = sum(map(len, recordingfile.lines(made)))
            assert len(made.events) <= MAX_EVENTS
            assert all(len(series.steps) <= MAX_POINTS for series in (*made.losses.values(), *made.scalars.values()))
            assert FIRST_STEPS < len(made.tracks[sites[0], Stat.UNIT_ACTIVE].steps) < 200
    assert sizes[999_999] < 2 * sizes[99_999] < 2_000_000
