from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.checks.training.schedule_too_long import ScheduleTooLong
from netdoctor.finding import Certainty, Severity, Verdict
from netdoctor.recording import Event, Header, Series, SourceLine
from tests.checks.builders import Builder

BUILT = SourceLine("t.py", 5, "sched = OneCycleLR(opt, 0.1, total_steps=len(loader) * epochs)")
CALL = SourceLine("t.py", 12, "sched.step()")


def run(length=200.0, steps=200, calls=5, kind="OneCycleLR", ended="finished", source=CALL, schedules=1) -> Builder:
    build = Builder(steps).optimizer("SGD", lr=0.004).count("scheduler", calls).count("scheduler built", schedules)
    build.recording.header = Header(ended=ended)
    build.recording.events += [Event(0, "scheduler built", kind, length, BUILT)] * schedules
    build.recording.events += [Event(40 * n, "scheduler", source=source) for n in range(calls)]
    build.recording.scalars["lr"] = Series(np.arange(steps), np.linspace(0.004, 0.005, steps))
    return build


def judged(build) -> list:
    return list(ScheduleTooLong().judge(build.done()))


def test_a_schedule_of_batches_that_is_stepped_per_epoch():
    (found,) = judged(run())
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.MEASURED)
    assert "made for 200 steps, and was stepped 5 times in the 200" in found.title
    assert "from 0.004 to 0.005" in found.explanation
    assert found.location.line == 12
    assert found.fixes[0].code.startswith("opt")
    assert "sched.step()  # in the loop over the batches" in found.fixes[0].code


def test_where_a_trainer_steps_it():
    (found,) = judged(run(source=SourceLine("t.py", 30, "trainer.fit(model)")))
    assert found.location.line == 5
    assert '"interval": "step"' in found.fixes[0].code


def test_a_cosine_is_no_warm_up():
    (found,) = judged(run(kind="CosineAnnealingLR"))
    assert found.severity is Severity.WARNING


@pytest.mark.parametrize(
    ("length", "fires"), [(196.0, True), (195.0, False), (204.0, True), (205.0, False), (5.0, False), (math.nan, False)]
)
def test_its_length_is_that_of_the_run(length, fires):
    assert bool(judged(run(length=length))) is fires


@pytest.mark.parametrize(("calls", "fires"), [(0, False), (1, True), (39, True), (40, False), (200, False)])
def test_how_far_it_came(calls, fires):
    assert bool(judged(run(calls=calls))) is fires


@pytest.mark.parametrize(("steps", "fires"), [(19, False), (20, True)])
def test_short_ones(steps, fires):
    assert bool(judged(run(length=float(steps), steps=steps, calls=2))) is fires


def test_several_schedules_and_runs_that_were_cut_short():
    assert judged(run(schedules=2)) == []
    assert judged(run(ended="stopped after 200 steps")) == []


def test_a_higher_rate_that_trains_on_a_copy_is_the_proof():
    build = run()
    build.arm("trial/control", [2.3] * 60, lr=0.004).arm("trial/lr x10", [2.3 * 0.96**n for n in range(60)], lr=0.04)
    (found,) = judged(build)
    assert found.certainty is Certainty.PROVEN
    assert found.fixes[0].trial.verdict is Verdict.CURED
    assert "0.04, 10 times its rate now" in found.fixes[0].says


def warming(top=100.0, steps=800, calls=8, kind="LambdaLR", inner=0, events=1, **fields) -> Builder:
    """A run whose schedule rises to 0.05 in its first `top` calls; `inner` schedules are parts of it."""
    build = run(math.nan, steps, calls, kind, schedules=1 + inner, **fields)
    build.count("scheduler inside", inner)
    build.recording.events += [Event(0, "warm-up", "0.05", top, BUILT)] * events
    return build


def test_a_warm_up_of_batches_that_is_stepped_per_epoch():
    (found,) = judged(warming())
    assert (found.severity, found.location.line) == (Severity.ERROR, 12)
    assert found.title == "the schedule warms up over 100 steps, and was stepped 8 times in the 800 of the run"
    assert found.explanation.startswith("LambdaLR counts")
    assert found.explanation.endswith("It is to reach 0.05.")
    assert found.evidence[0].limit == 20.0


@pytest.mark.parametrize(("calls", "fires"), [(0, False), (1, True), (19, True), (20, False), (800, False)])
def test_how_far_it_warmed_up(calls, fires):
    assert bool(judged(warming(calls=calls))) is fires


@pytest.mark.parametrize(("top", "fires"), [(19.0, False), (20.0, True), (800.0, True), (801.0, False)])
def test_it_was_to_be_warm_within_the_run(top, fires):
    assert bool(judged(warming(top, calls=3))) is fires


def test_calls_are_few_beside_the_steps_too():
    assert judged(warming(100.0, steps=100, calls=19)) != []
    assert judged(warming(95.0, steps=96, calls=19)) == []


def test_a_warm_up_that_is_part_of_a_schedule():
    assert len(judged(warming(kind="LinearLR", inner=2))) == 1
    assert judged(warming(kind="LinearLR", inner=2, events=2)) == []
    several = warming()
    several.recording.counts["scheduler built"] = 2
    assert judged(several) == []
    assert judged(warming(ended="stopped after 200 steps")) == []
