from __future__ import annotations

import pytest

from netdoctor.checks.training.missing_zero_grad import MissingZeroGrad
from netdoctor.finding import Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder


def run(*kinds: str, steps: int = 10, filled: bool = True) -> Builder:
    return Builder(steps).optimizer("SGD").each_step(*kinds).facts(gradients_before_backward=filled)


def judged(build) -> list:
    return list(MissingZeroGrad().judge(build.done()))


def test_filled_gradients_are_an_error():
    build = run("backward", "step")
    build.recording.events.append(Event(0, "backward", source=SourceLine("t.py", 9, "loss.mean().backward()")))
    (found,) = judged(build)
    assert found.severity is Severity.ERROR
    assert found.title == "gradients are never cleared: no zero_grad in 10 steps"
    assert found.location.line == 9
    assert found.fixes[0].code == "optimizer.zero_grad()\nloss.mean().backward()"


@pytest.mark.parametrize(("steps", "fires"), [(2, False), (3, True)])
def test_a_habit_needs_three_steps(steps, fires):
    assert bool(judged(run("backward", "step", steps=steps))) is fires


def test_clearing_something_else_does_not_help():
    assert len(judged(run("zero_grad", "backward", "step"))) == 1


@pytest.mark.parametrize(
    "build",
    [
        run("backward", "step", filled=False),
        Builder(10).each_step("backward", "step"),  # not known
        run("zero_grad", "backward", "backward", "step"),  # two losses share one step
    ],
)
def test_it_stays_silent(build):
    assert judged(build) == []


@pytest.mark.parametrize(("stale", "clean", "fires"), [(2, 0, False), (3, 0, True), (9, 1, False)])
def test_each_of_several_optimizers_is_looked_at_by_itself(stale, clean, fires):
    build = run("backward", "step", filled=False).optimizer("Adam", line=7)
    build.recording.counts |= {"stale step 1": stale, "clean step 1": clean, "clean step 0": 9}
    found = judged(build)
    assert len(found) == fires
    assert all(finding.location.line == 7 for finding in found)
