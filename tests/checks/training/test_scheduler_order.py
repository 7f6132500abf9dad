from __future__ import annotations

import pytest

from netdoctor.checks.training.scheduler_order import SchedulerOrder
from netdoctor.finding import Severity
from netdoctor.recording import Event, Header, SourceLine
from tests.checks.builders import Builder

CALL = SourceLine("t.py", 12, "sched.step()")
BUILT = SourceLine("t.py", 5, "sched = StepLR(opt, 10)")


def run(order: str, steps: int = 4, first: SourceLine | None = CALL) -> Builder:
    """Events by letters: s(cheduler), o(ptimizer step)."""
    build = Builder(steps)
    for at, letter in enumerate(order):
        called = Event(0, "scheduler", source=first if at == 0 else CALL)
        build.recording.events.append(called if letter == "s" else Event(0, "step"))
    return build


def judged(build) -> list:
    return list(SchedulerOrder().judge(build.done()))


@pytest.mark.parametrize("order", ["sososo", "sooosooo", "soo"])
def test_the_scheduler_before_the_optimizer(order):
    (found,) = judged(run(order))
    assert found.severity is Severity.WARNING
    assert found.location.line == 12
    assert found.fixes[0].code == "optimizer.step()\nsched.step()"


@pytest.mark.parametrize("order", ["ososos", "ooosooos", "ssssoooo", "sos", "so", "", "ooo", "sosos"])
def test_other_orders_are_fine(order):
    assert judged(run(order)) == []


@pytest.mark.parametrize("source", [BUILT, None])
def test_the_call_while_it_is_built_does_not_count(source):
    assert judged(run("soososos", first=source)) == []


def test_a_first_step_that_the_scaler_skipped():
    assert judged(run("sososo").count("scaler-skip", 1)) == []


def test_too_short():
    assert judged(run("soo", steps=1)) == []


@pytest.mark.parametrize(("ended", "fires"), [("finished", True), ("stopped after 4 steps", False)])
def test_never_stepped(ended, fires):
    build = run("oooo").facts(scheduler_never_stepped=True)
    build.recording.header = Header(ended=ended)
    found = judged(build)
    assert [f.title for f in found] == ["a scheduler was built and never stepped"] * fires


def test_where_the_one_was_built_that_is_never_stepped():
    build = run("oooo").facts(scheduler_never_stepped=True)
    build.recording.events.append(
        Event(0, "scheduler built", source=SourceLine("t.py", 5, "self.sched = StepLR(opt, 10)"))
    )
    (found,) = judged(build)
    assert found.location.line == 5
    assert found.fixes[0].code == "optimizer.step()\nself.sched.step()"
