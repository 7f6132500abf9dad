from __future__ import annotations

import pytest

from netdoctor.checks.training.grads_zeroed_before_step import GradsZeroedBeforeStep
from netdoctor.finding import Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder


def judged(build) -> list:
    return list(GradsZeroedBeforeStep().judge(build.done()))


def run(steps: int = 5, zeroed: int | None = None) -> Builder:
    build = Builder(steps).linear("body").optimizer().each_step("backward", "zero_grad", "step")
    return build.count("zeroed step 0", steps if zeroed is None else zeroed)


def say(build: Builder, *events: tuple[int, str, str], detail: str = "") -> None:
    for line, kind, text in events:
        build.recording.events.append(Event(0, kind, detail, source=SourceLine("t.py", line, text)))


def test_the_order_is_an_error_with_the_right_one_as_code():
    build = run()
    say(build, (3, "backward", "err.backward()"), (4, "zero_grad", "net.zero_grad()"), (5, "step", "o.step()"))
    (found,) = judged(build)
    assert found.severity is Severity.ERROR
    assert found.location.line == 4
    assert found.fixes[0].code == "o.zero_grad()\nerr.backward()\no.step()"


def test_the_line_that_clears_too_early_is_named_not_one_that_clears_in_time():
    build = run()
    say(build, (2, "zero_grad", "o.zero_grad()"), (4, "zeroed step 0", "net.zero_grad()"))
    (found,) = judged(build)
    assert found.location.line == 4


@pytest.mark.parametrize(("steps", "fires"), [(1, False), (2, True)])
def test_too_short(steps, fires):
    assert bool(judged(run(steps))) is fires


@pytest.mark.parametrize(("zeroed", "fires"), [(0, False), (80, False), (89, False), (90, True), (100, True)])
def test_an_optimizer_that_has_gradients_now_and_then_may_be_meant_so(zeroed, fires):
    assert bool(judged(run(100, zeroed))) is fires


def test_of_several_optimizers_the_one_that_steps_too_late_is_named_and_the_loop_is_written_anew():
    build = Builder(5).linear("head").optimizer(parameters=["head.weight", "head.bias"])
    build.linear("encoder").optimizer(parameters=["encoder.weight", "encoder.bias"])
    build.count("zeroed step 1", 5)
    say(build, (7, "zeroed step 1", "net.zero_grad()"), detail="for o in both:\n    o.step()")
    (found,) = judged(build)
    assert "encoder" in found.title
    assert "head" not in found.title
    assert found.places == ("encoder.weight", "encoder.bias")
    assert found.share == 0.5
    assert found.location.line == 7
    assert found.fixes[0].code == "for o in both:\n    o.step()\nnet.zero_grad()"
