from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.training.accumulation_scaling import AccumulationScaling
from netdoctor.finding import Certainty, Finding
from tests.checks.builders import Builder

STUCK, FALLS = np.full(60, 2.3), np.linspace(2.3, 0.5, 60)


def recording(
    cycle: float = 16, by: float | None = None, ratio: float = 0.01, steps: int = 60, **options: float
) -> Builder:
    build = Builder(steps=steps).linear("0", weight_rms=1.0, update=ratio).optimizer("SGD", lr=0.1, **options)
    build.loss(2.3).facts(loss_lower_bound=0.0)
    build.event(0, "backward", line=20).count("backward", int(cycle * steps)).count("step", steps)
    loss = build.operation("cross_entropy", build.weight("0.weight"), build.value((8,), "int64"), shape=())
    if by is not None:
        loss = build.operation("div", loss, **{"1": by})
    return build.backward(loss)


def trials(build: Builder, factor: str = "0.1", control: np.ndarray = STUCK) -> Builder:
    return build.arm("trial/control", control, lr=0.1).arm(f"trial/lr x{factor}", FALLS, lr=0.1 * float(factor))


def judged(build: Builder) -> list[Finding]:
    return list(AccumulationScaling().judge(build.done()))


def test_it_says_by_what_to_divide() -> None:
    (finding,) = judged(trials(recording()))
    assert "16 backward calls" in finding.title
    assert finding.fixes[0].code == "(loss / 16).backward()"
    assert (finding.location.line, finding.certainty) == (20, Certainty.PROVEN)


def test_a_loss_that_only_comes_down_from_its_own_explosion_is_no_training() -> None:
    """It falls, and ends above a constant prediction: what it does cannot be told, and the trial tells."""
    losses = np.r_[np.geomspace(1e8, 9.0, 40), np.full(20, 9.0)]
    build = trials(recording()).loss(losses).arm("overfit/own", [8.0], constant=8.0)
    assert [finding.certainty for finding in judged(build)] == [Certainty.PROVEN]
    assert judged(trials(recording()).loss(np.linspace(2.3, 0.3, 60))) == []


@pytest.mark.parametrize(("cycle", "fires"), [(3.4, False), (4, True)])
def test_the_number_of_backward_calls(cycle: float, fires: bool) -> None:
    assert bool(judged(trials(recording(cycle)))) is fires


@pytest.mark.parametrize(("cycle", "fires"), [(39, False), (40, True)])
def test_a_rate_far_lower_than_the_division_makes_it_proves_nothing(cycle: float, fires: bool) -> None:
    assert bool(judged(trials(recording(cycle), "0.01"))) is fires


@pytest.mark.parametrize(("left", "fires"), [(0.72, False), (0.68, True)])
def test_what_the_trial_must_gain(left: float, fires: bool) -> None:
    build = recording().arm("trial/control", STUCK, lr=0.1)
    assert bool(judged(build.arm("trial/lr x0.1", np.r_[np.linspace(2.3, 2.3 * left, 40), [2.3 * left] * 20]))) is fires


@pytest.mark.parametrize(("left", "fires"), [(0.92, True), (0.88, False)])
def test_what_the_control_may_lose(left: float, fires: bool) -> None:
    control = np.r_[np.linspace(2.3, 2.3 * left, 40), [2.3 * left] * 20]
    assert bool(judged(trials(recording(), control=control))) is fires


@pytest.mark.parametrize(("ratio", "fires"), [(0.09, False), (0.11, True), (1.5, True), (1.7, False)])
def test_without_trials_updates_that_the_division_would_mend(ratio: float, fires: bool) -> None:
    assert bool(judged(recording(ratio=ratio))) is fires


@pytest.mark.parametrize(("by", "fires"), [(1.5, True), (2, False), (16, False)])
def test_a_loss_that_is_divided(by: float, fires: bool) -> None:
    assert bool(judged(trials(recording(by=by)))) is fires


def test_silent_where_the_scale_does_not_matter_or_training_learns() -> None:
    assert judged(trials(recording(eps=1e-8))) == []
    assert judged(trials(recording().count("clip", 60))) == []
    assert judged(trials(recording().loss(lambda step: 2.3 * 0.95**step))) == []
    assert judged(trials(recording().loss(2.3, "another"))) == []
