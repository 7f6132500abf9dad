from __future__ import annotations

import pytest

from netdoctor.checks.training.slow_data_loading import SlowDataLoading
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder


def judged(steps: float, wall: float, waited: float, workers: int = 0, device: str = "cpu") -> list[Finding]:
    build = Builder(steps=100)
    recording = build.done()
    recording.facts |= {"loader_steps": steps, "loader_wall_s": wall, "loader_waited_s": waited}
    recording.events.append(Event(9, "loader", "", workers, SourceLine("train.py", 7, "for x, y in loader:")))
    object.__setattr__(recording.header, "device", device)
    return list(SlowDataLoading().judge(recording))


def test_more_waiting_than_computing() -> None:
    (finding,) = judged(100, 10.0, 8.0)
    assert finding.severity is Severity.ADVICE
    assert finding.title == "80 % of the time is spent waiting for batches"
    assert finding.location.line == 7
    assert finding.fixes[0].code == "DataLoader(..., num_workers=4, persistent_workers=True)"


@pytest.mark.parametrize(
    ("steps", "wall", "waited", "fires"),
    [
        (50, 10.0, 5.1, True),
        (49, 10.0, 5.1, False),
        (50, 10.0, 5.0, False),
        (50, 5.8, 3.0, True),
        (50, 5.8, 2.9, False),
        (0, 0.0, 0.0, False),
    ],
)
def test_limits(steps: float, wall: float, waited: float, fires: bool) -> None:
    assert bool(judged(steps, wall, waited)) is fires


def test_workers_that_are_too_few_for_a_gpu() -> None:
    (finding,) = judged(100, 10.0, 8.0, workers=3, device="cuda:0")
    assert "with 3 workers" in finding.explanation
    assert "num_workers=6" in finding.fixes[0].code
    assert "pin_memory=True" in finding.fixes[0].code
