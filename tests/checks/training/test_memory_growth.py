from __future__ import annotations

import pytest

from netdoctor.checks.training.memory_growth import MemoryGrowth
from netdoctor.finding import Finding
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder


def recording(ages: list[float], alive: list[float] | None = None, share: float = 1.0, text: str = "") -> Builder:
    build = Builder(steps=len(ages))
    build.scalar("graph age", ages).scalar("graphs alive", alive or [max(0, a - 1) for a in ages])
    build.scalar("graphs alive, share", share)
    if text:
        build.recording.events.append(Event(4, "graphs retained", source=SourceLine("train.py", 21, text)))
    return build


def judged(build: Builder) -> list[Finding]:
    return list(MemoryGrowth().judge(build.done()))


def growing(steps: int) -> list[float]:
    return [float(step) for step in range(steps)]


@pytest.mark.parametrize(("steps", "fires"), [(16, False), (17, True)])
def test_the_age_of_the_oldest(steps: int, fires: bool) -> None:
    assert bool(judged(recording(growing(steps)))) is fires


@pytest.mark.parametrize(("alive", "fires"), [(7, False), (8, True)])
def test_the_number_of_graphs(alive: float, fires: bool) -> None:
    assert bool(judged(recording(growing(40), [alive] * 40))) is fires


@pytest.mark.parametrize(("share", "fires"), [(0.74, False), (0.75, True)])
def test_the_share_of_graphs(share: float, fires: bool) -> None:
    assert bool(judged(recording(growing(40), share=share))) is fires


def test_a_sum_that_begins_anew_each_epoch_is_found_and_a_cache_that_slides_is_not() -> None:
    assert judged(recording([step % 20 for step in range(50)])) != []
    assert judged(recording([min(step, 20) for step in range(50)])) == []


def test_a_few_sampled_steps_of_the_same_age_are_no_growth() -> None:
    build = Builder(steps=60)
    for name, values in (("graph age", [30, 35, 40]), ("graphs alive", [29, 30, 31]), ("graphs alive, share", [1] * 3)):
        build.scalar(name, values, steps=[30, 35, 40])
    assert judged(build) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("total += loss", "total += loss.item()"),
        ("kept.append(net(x))", "kept.append(net(x).detach())"),
        ("h = cell(x, h)", "total_loss += loss.item()\nhidden = hidden.detach()"),
    ],
)
def test_the_line_that_holds_them_is_mended(text: str, code: str) -> None:
    (finding,) = judged(recording(growing(30), text=text))
    assert finding.location.line == 21
    assert finding.fixes[0].code == code


def test_silent_without_a_graph() -> None:
    assert judged(Builder(steps=50)) == []
