from __future__ import annotations

import pytest

from netdoctor.checks.training.grads_zeroed_before_step import GradsZeroedBeforeStep
from netdoctor.finding import Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder


def judged(build) -> list:
    return list(GradsZeroedBeforeStep().judge(build.done()))


def run(steps: int = 5) -> Builder:
    return Builder(steps).facts(zeroed_before_step=True).each_step("backward", "zero_grad", "step")


def test_the_order_is_an_error_with_the_right_one_as_code():
    build = run()
    for line, kind, text in (
        (3, "backward", "err.backward()"),
        (4, "zero_grad", "net.zero_grad()"),
        (5, "step", "o.step()"),
    ):
        build.recording.events.append(Event(0, kind, source=SourceLine("t.py", line, text)))
    (found,) = judged(build)
    assert found.severity is Severity.ERROR
    assert found.location.line == 4
    assert found.fixes[0].code == "o.zero_grad()\nerr.backward()\no.step()"


@pytest.mark.parametrize(("steps", "fires"), [(1, False), (2, True)])
def test_too_short(steps, fires):
    assert bool(judged(run(steps))) is fires


@pytest.mark.parametrize("facts", [{}, {"zeroed_before_step": False}])
def test_it_stays_silent(facts):
    assert judged(Builder(5).facts(**facts).each_step("zero_grad", "backward", "step")) == []
