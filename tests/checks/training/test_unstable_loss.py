from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.training.unstable_loss import UnstableLoss
from netdoctor.finding import Abstention, Finding
from tests.checks.builders import Builder


def recording(
    rises: int = 10, left: int = 0, by: float = 0.1, jump: float = 0.6, level: float = 0.3, slower: float = 0.7
) -> Builder:
    """A loss that fell to `level` and jumps by `jump` of it; in the arms, so many of 20 late steps raise their own loss."""
    build = Builder(steps=200).linear("0").optimizer("SGD", lr=0.9, line=19)
    build.loss(lambda step: 1.0 - step / 100 if step < 70 else level * (1 + jump * (-1) ** step / 2)).facts(
        loss_lower_bound=0.0
    )
    return arm(arm(build, "own", rises, by), "lr x0.1", left, by, level=slower)


def arm(build: Builder, name: str, rises: int, by: float, steps: int = 40, level: float = 1.0) -> Builder:
    before, after = np.full(steps, level), np.full(steps, 0.9 * level)
    after[steps - rises :] = level * (1 + by)
    return build.arm(f"stability/{name}", before, curves={"after": after})


def judged(build: Builder) -> list[Finding]:
    return [found for found in UnstableLoss().judge(build.done()) if isinstance(found, Finding)]


def test_it_says_how_many_steps_and_tries_a_third() -> None:
    (finding,) = judged(recording())
    assert "50 % of the steps" in finding.title
    assert finding.location.line == 19
    assert "0.3" in finding.fixes[0].code


@pytest.mark.parametrize(("rises", "fires"), [(1, False), (2, True)])
def test_the_share_of_steps(rises: int, fires: bool) -> None:
    assert bool(judged(recording(rises))) is fires


@pytest.mark.parametrize(("by", "fires"), [(0.04, False), (0.06, True)])
def test_a_clear_rise(by: float, fires: bool) -> None:
    assert bool(judged(recording(by=by))) is fires


@pytest.mark.parametrize(("left", "fires"), [(4, False), (3, True)])
def test_a_lower_rate_must_mend_it(left: int, fires: bool) -> None:
    assert bool(judged(recording(12, left))) is fires


@pytest.mark.parametrize(("slower", "fires"), [(0.91, False), (0.89, True)])
def test_a_rate_that_is_still_the_faster_one_does_no_harm(slower: float, fires: bool) -> None:
    assert bool(judged(recording(slower=slower))) is fires


@pytest.mark.parametrize(("jump", "fires"), [(0.34, False), (0.4, True)])
def test_the_jumps_of_the_run(jump: float, fires: bool) -> None:
    # A loss that alternates by `jump` of its level deviates from the mean of its neighbours by as much: times sqrt(2/3).
    assert bool(judged(recording(jump=jump))) is fires


@pytest.mark.parametrize(("level", "fires"), [(0.035, False), (0.06, True)])
def test_a_loss_near_zero_may_jump(level: float, fires: bool) -> None:
    assert bool(judged(recording(level=level))) is fires


@pytest.mark.parametrize(("steps", "fires"), [(30, False), (32, True)])
def test_the_number_of_steps(steps: int, fires: bool) -> None:
    build = recording()
    assert bool(judged(arm(arm(build, "own", 8, 0.1, steps), "lr x0.1", 0, 0.1, steps, 0.7))) is fires


def test_it_abstains_where_the_copy_could_not_run_and_is_silent_without_it() -> None:
    build = recording().arm("stability/own", failure="no copy")
    assert list(UnstableLoss().judge(build.done())) == [Abstention("unstable-loss", "no copy")]
    build = recording()
    build.recording.arms.clear()
    assert judged(build) == []
