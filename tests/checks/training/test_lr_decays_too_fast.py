from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from netdoctor.checks.training.lr_decays_too_fast import LrDecaysTooFast
from netdoctor.checks.training.revived import AS_IT_ENDED, REVIVED
from netdoctor.finding import Abstention, Certainty, Finding, Severity, Verdict
from netdoctor.recording import SourceLine
from tests.checks.builders import Builder

STEPS = 400


def judged(rate: Callable[[int], float], loss: Callable[[int], float], **facts: object) -> list[Finding]:
    build = Builder(steps=STEPS).linear("0").optimizer("SGD", lr=0.1).scalar("lr", rate).loss(loss)
    build.facts(loss_family="mse", loss_lower_bound=0.0, **facts)
    return list(LrDecaysTooFast().judge(build.done()))


def frozen_from(step: int, slope: float = 0.02) -> Callable[[int], float]:
    """A loss that falls exponentially until a step, and then stands still, with some noise."""
    return lambda at: math.exp(-slope * min(at, step)) * (1 + 0.01 * math.sin(5.0 * at))


def exponential(factor: float) -> Callable[[int], float]:
    return lambda step: 0.1 * factor**step


def test_a_decay_that_stops_a_falling_loss() -> None:
    (finding,) = judged(exponential(0.95), frozen_from(45))
    assert finding.severity is Severity.WARNING
    assert "multiplied by 0.95 per step" in finding.explanation
    assert "halved by step 14" in finding.explanation
    assert finding.location.step == 90


def test_a_decay_within_the_first_steps_is_an_error() -> None:
    (finding,) = judged(exponential(0.5), frozen_from(3, slope=0.001))
    assert finding.severity is Severity.ERROR


@pytest.mark.parametrize(("last", "fires"), [(0.0009, True), (0.0011, False)])
def test_the_limit_of_one_percent(last: float, fires: bool) -> None:
    assert bool(judged(lambda s: 0.1 if s < 60 else last, frozen_from(60))) is fires


@pytest.mark.parametrize(("at", "fires"), [(270, True), (290, False)])
def test_the_share_of_the_run_that_is_left(at: int, fires: bool) -> None:
    assert bool(judged(lambda s: 0.1 if s < at else 0.0005, frozen_from(at, slope=0.004))) is fires


@pytest.mark.parametrize(
    "rate",
    [
        lambda s: 0.05 * (1 + math.cos(math.pi * s / STEPS)),
        lambda s: 0.1 * (1 - s / STEPS),
        lambda s: 0.1 * min(1.0, (s + 1) / 200),
        lambda s: 0.05 * (1 + math.cos(math.pi * (s % 50) / 50)),
        lambda s: 0.1,
    ],
    ids=["cosine", "linear", "warm-up", "restarts", "constant"],
)
def test_silent_on_sound_schedules(rate: Callable[[int], float]) -> None:
    assert judged(rate, frozen_from(60)) == []


def test_silent_where_the_loss_had_settled_before() -> None:
    settled = lambda s: 0.5 + 0.5 * math.exp(-0.1 * s) + 0.01 * math.sin(5.0 * s)  # noqa: E731
    assert judged(lambda s: 0.1 if s < 200 else 0.0005, settled) == []


def test_silent_at_the_floor_and_where_the_loss_goes_on_falling() -> None:
    assert judged(exponential(0.95), frozen_from(200)) == []
    assert judged(lambda s: 0.1 if s < 80 else 0.0005, frozen_from(400, slope=0.006)) == []


def test_the_script_s_own_line_is_moved() -> None:
    build = Builder(steps=STEPS).linear("0").optimizer("SGD", lr=0.1).scalar("lr", exponential(0.9))
    build.loss(frozen_from(20)).facts(loss_family="mse", loss_lower_bound=0.0)
    for step in range(3):
        build.event(step, "scheduler", line=33)
    build.count("scheduler", STEPS)
    source = SourceLine("train.py", 33, "scheduler.step()")
    build.recording.events = [replace(e, source=source) for e in build.recording.events]
    (finding,) = LrDecaysTooFast().judge(build.done())
    assert finding.location.line == 33
    assert "scheduler.step()" in finding.fixes[0].code
    assert "after every batch" in finding.explanation


# --- the trained model goes on ---------------------------------------------------------------------------------------


def gone_on(end: float, loss: Callable[[int], float], failure: str = "", control: float = 1.0) -> list[object]:
    """What is judged where going on with a living rate brings the held-out loss from 1 to `end`, and without to `control`."""
    build = Builder(steps=STEPS).linear("0").optimizer("SGD", lr=0.1).loss(loss)
    build.scalar("lr", lambda s: 0.1 if s < 100 else 0.0005).facts(loss_family="mse", loss_lower_bound=0.0)
    build.arm(REVIVED, [1.0, 1.3, end, end, end], failure=failure, lr=0.033, steps=240.0)
    build.arm(AS_IT_ENDED, [1.0] + 4 * [control], lr=0.0005, steps=240.0)
    return list(LrDecaysTooFast().judge(build.done()))


def settled(step: int) -> float:
    """It falls no more when the rate comes to nothing, so that its trend promises nothing."""
    return 0.5 + 0.5 * math.exp(-0.1 * step) + 0.01 * math.sin(5.0 * step)


def promising(step: int) -> float:
    return frozen_from(100, slope=0.01)(step)


@pytest.mark.parametrize(("end", "fires"), [(0.951, False), (0.9499, True), (0.5, True), (1.0, False), (1.2, False)])
@pytest.mark.parametrize("loss", [settled, promising])
def test_what_a_living_rate_takes_off_the_held_out_loss_decides(
    loss: Callable[[int], float], end: float, fires: bool
) -> None:
    assert bool(gone_on(end, loss)) is fires


def test_the_trial_is_shown() -> None:
    (finding,) = gone_on(0.9, settled)
    assert isinstance(finding, Finding)
    assert finding.certainty is Certainty.PROVEN
    assert "came from 1 to 0.9; with the rate as it ended, to 1." in finding.explanation
    assert finding.evidence[1].measured == pytest.approx(10.0)
    trial = finding.fixes[0].trial
    assert trial is not None
    assert (trial.verdict, trial.steps) == (Verdict.EASED, 240)
    assert (trial.control[-1], trial.treated[-1]) == (1.0, 0.9)
    (finding,) = gone_on(0.79, settled)
    assert isinstance(finding, Finding)
    assert finding.fixes[0].trial is not None
    assert finding.fixes[0].trial.verdict is Verdict.CURED


def test_the_control_counts_where_it_goes_on_learning_too() -> None:
    assert gone_on(0.9, settled, control=0.9) == []


def test_how_low_it_came_counts_and_one_lucky_evaluation_does_not() -> None:
    build = Builder(steps=STEPS).linear("0").optimizer("SGD", lr=0.1).loss(settled)
    build.scalar("lr", lambda s: 0.1 if s < 100 else 0.0005).facts(loss_family="mse", loss_lower_bound=0.0)
    build.arm(AS_IT_ENDED, [1.0] * 9, lr=0.0005)
    by_heart = build.arm(REVIVED, [1.0, 0.9, 0.8, 0.8, 0.8, 1.0, 1.2, 1.4, 1.6], lr=0.033).done()
    assert len(list(LrDecaysTooFast().judge(by_heart))) == 1
    lucky = build.arm(REVIVED, [1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], lr=0.033).done()
    assert list(LrDecaysTooFast().judge(lucky)) == []


def test_without_a_trial_the_trend_decides_and_where_that_is_not_clear_nobody() -> None:
    assert isinstance(gone_on(0.5, promising, failure="no time")[0], Finding)
    assert gone_on(0.5, settled, failure="no time") == []
    slowly = lambda s: 0.5 + 0.5 * math.exp(-0.02 * min(s, 100))  # noqa: E731
    faint = lambda s: 1 - 0.0004 * min(s, 100)  # noqa: E731
    assert isinstance(gone_on(0.5, slowly, failure="no time")[0], Finding)
    (told,) = gone_on(0.5, faint, failure="no time")
    assert isinstance(told, Abstention)
    assert told.reason == "no time"


def test_a_loss_at_its_floor_or_still_falling_is_none_of_its_business() -> None:
    assert gone_on(0.5, frozen_from(100, slope=0.05)) == []
    assert gone_on(0.5, frozen_from(400, slope=0.004)) == []


def test_where_nothing_was_learned_a_trial_without_gain_says_nothing() -> None:
    """Another fault may hold it back there: the trend decides, and a rate that died within the first steps has none."""
    build = Builder(steps=STEPS).linear("0").optimizer("SGD", lr=0.1).scalar("lr", exponential(0.5))
    build.loss(frozen_from(3, slope=0.001)).facts(loss_family="mse", loss_lower_bound=0.0)
    build.arm(AS_IT_ENDED, [1.0] * 9, lr=0.0).arm(REVIVED, [1.0] * 9, lr=0.033)
    (finding,) = LrDecaysTooFast().judge(build.done())
    assert isinstance(finding, Finding)
    assert (finding.severity, finding.certainty, finding.fixes[0].trial) == (Severity.ERROR, Certainty.MEASURED, None)
