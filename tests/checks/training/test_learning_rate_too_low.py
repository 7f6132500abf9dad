from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from netdoctor.checks.training.learning_rate_too_low import LearningRateTooLow
from netdoctor.finding import Abstention, Certainty, Severity
from tests.checks.training.trials import falls, flat, network


def sick(ratio: float = 1e-6, steps: int = 60):
    build = network(ratio, steps, lr=1e-5, line="optimizer = SGD(model.parameters(), 1e-5)").loss(flat(steps=steps))
    return build.arm("trial/control", flat()).arm("trial/lr x10", flat()).arm("trial/lr x100", falls(0.8))


def judged(build) -> list:
    return list(LearningRateTooLow().judge(build.done()))


def test_a_higher_rate_that_trains_proves_it():
    (found,) = judged(sick())
    assert found.severity is Severity.WARNING
    assert found.certainty is Certainty.PROVEN
    assert found.title == "the learning rate 1e-05 is too low: at 0.001 it trains from the same start"
    assert found.fixes[0].code == "optimizer = SGD(model.parameters(), 0.001)"
    assert found.evidence[0].measured == pytest.approx(1e-6)
    assert found.places == ("body.0.weight", "body.2.weight")


@pytest.mark.parametrize(("ratio", "fires"), [(0.9e-4, True), (1.1e-4, False)])
def test_the_limit_of_the_update_ratio(ratio, fires):
    assert bool(judged(sick(ratio))) is fires


def test_weights_that_do_not_move_at_all_have_another_cause():
    assert judged(sick(0.0)) == []


def test_the_rate_of_a_schedule_that_never_steps_is_judged_by_the_trials_alone():
    assert judged(sick(1e-2)) == []
    (found,) = judged(sick(1e-2).facts(scheduler_never_stepped=True))
    assert all(evidence.quantity != "update ratio, median" for evidence in found.evidence)
    assert found.places == ("body.0.weight", "body.2.weight")
    assert judged(sick(1e-2).facts(scheduler_never_stepped=True).arm("trial/lr x100", flat())) == []


def still(lr: float = 0.0, steps: int = 60, **scalars: float):
    build = network(0.0, steps, lr=lr, line="optimizer = SGD(model.parameters(), lr=64 // 256 * 0.1)").loss(
        flat(steps=steps)
    )
    for name, value in scalars.items():
        build.scalar(name.replace("_", " "), [value] * steps)
    return build


def test_a_rate_of_zero_needs_no_trial_and_takes_the_rate_of_one_that_ran():
    (found,) = judged(still())
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.MEASURED)
    assert found.title == "the learning rate is 0 in every step: nothing is trained"
    assert found.fixes[0].code == "optimizer = SGD(model.parameters(), lr=0.01)"
    tried = (
        still()
        .arm("trial/control", flat(), lr=0.0)
        .arm("trial/lr x10", flat())
        .arm("trial/lr x100", falls(0.8), lr=0.1)
    )
    (found,) = judged(tried)
    assert found.certainty is Certainty.PROVEN
    assert found.fixes[0].code == "optimizer = SGD(model.parameters(), lr=0.1)"


@pytest.mark.parametrize(("lr", "steps", "fires"), [(0.0, 3, True), (0.0, 2, False), (1e-12, 60, False)])
def test_zero_in_every_step_and_in_no_warm_up(lr, steps, fires):
    assert bool(judged(still(lr, steps))) is fires


def test_one_group_that_moves_is_enough():
    assert judged(still(**{"lr_(0.1)": 0.01})) == []


def test_a_schedule_that_was_cut_off_may_yet_raise_it():
    build = still()
    build.recording.counts["scheduler"] = 60
    assert bool(judged(build))
    build.recording.header = dataclasses.replace(build.recording.header, ended="interrupted")
    assert judged(build) == []


@pytest.mark.parametrize(("steps", "fires"), [(29, False), (40, True)])
def test_a_short_run_had_no_time(steps, fires):
    assert bool(judged(sick(steps=steps))) is fires


@pytest.mark.parametrize(("left", "fires"), [(0.95, True), (0.8, False)])
def test_a_loss_that_falls_is_slow_but_healthy(left, fires):
    assert bool(judged(sick().loss(np.linspace(2.3, 2.3 * left, 60)))) is fires


@pytest.mark.parametrize(("left", "fires"), [(0.69, True), (0.71, False)])
def test_what_the_higher_rate_must_gain(left, fires):
    assert bool(judged(sick().arm("trial/lr x100", falls(2.3 * left)))) is fires


def test_a_control_that_trains_is_enough():
    assert judged(sick().arm("trial/control", falls(1.8))) == []


def test_a_pretrained_model_may_move_little():
    assert judged(sick().facts(pretrained=True)) == []


def test_a_model_at_its_floor_may_move_little():
    build = sick().loss(0.05 + 0.001 * flat(steps=60)).facts(loss_family="cross_entropy", classes=10)
    assert judged(build) == []


@pytest.mark.parametrize(
    "rates", [lambda s: 1e-5 * (60 - s) / 60, lambda s: 1e-5 * min(1, (s + 1) / 40)], ids=["end", "warm-up"]
)
def test_a_schedule_explains_a_low_rate(rates):
    assert judged(sick().scalar("lr", rates)) == []


def test_without_trials_it_abstains():
    build = sick()
    build.recording.arms.clear()
    (said,) = judged(build)
    assert isinstance(said, Abstention)
    assert "experiments were off" in said.reason


def test_without_trials_a_healthy_ratio_needs_no_word():
    build = sick(1e-3)
    build.recording.arms.clear()
    assert judged(build) == []


def test_trials_too_short_to_judge_are_said():
    (said,) = judged(sick().arm("trial/control", flat(steps=7)))
    assert "7 steps, 8 are needed" in said.reason


@pytest.mark.parametrize(
    ("type_", "own", "reached", "fires"),
    [
        ("Adam", 1e-4, True, True),
        ("AdamW", 1e-5, True, True),
        ("Adam", 1.1e-4, True, False),
        ("Adam", 1e-5, False, False),
        ("SGD", 1e-5, True, False),
    ],
)
def test_what_adam_fits_a_tiny_batch_with_counts_for_adam_ten_times_lower(type_, own, reached, fires):
    build = network(1e-6, lr=own, line="optimizer = Adam(model.parameters(), lr)").loss(flat(steps=60))
    build.recording.optimizers[0] = dataclasses.replace(build.recording.optimizers[0], type=type_)
    build.arm("trial/control", flat()).arm("trial/lr x100", falls(2.0))
    build.arm("overfit/own", flat(), reached=False, lr=own, falls=0.01)
    found = judged(build.arm("overfit/adam 0.001", falls(0.01), reached=reached, lr=1e-3, falls=0.99))
    assert bool(found) is fires
    if fires:
        assert found[0].certainty is Certainty.MEASURED
        assert "at 0.001 it trains" in found[0].title
