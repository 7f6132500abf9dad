from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdoctor.recording import Recording
from netdoctor.trend import judge, judge_series
from tests.checks.builders import Builder

CHANCE = math.log(10)


def noise(n: int, scale: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, n)


def decay(n: int, tau: float, start: float = 2.3) -> np.ndarray:
    return start * np.exp(-np.arange(n) / tau)


def test_a_noisy_fall_falls():
    trend = judge_series(decay(100, 40) + noise(100, 0.1), chance=CHANCE)
    assert trend.kind == "falls"
    assert trend.learning
    assert not trend.failing
    assert trend.drop == pytest.approx(0.86, abs=0.05)
    assert trend.noise == pytest.approx(0.1, rel=0.3)
    assert trend.z < -8


@pytest.mark.parametrize("n", [8, 12, 20, 50, 4096])
def test_a_smooth_fall_falls_at_every_length(n):
    assert judge_series(decay(n, 40)).kind == "falls"


def test_noise_ignores_a_smooth_trend():
    assert judge_series(decay(50, 10)).noise < 0.005


def test_a_slow_fall_under_noise_is_found_in_a_long_run():
    assert judge_series(2.3 - 0.002 * np.arange(300) + noise(300, 0.1)).kind == "falls"


@pytest.mark.parametrize(("n", "known"), [(7, False), (8, True)])
def test_too_short_is_unknown(n, known):
    trend = judge_series(np.full(n, 2.3))
    assert (trend.kind != "unknown") is known
    assert known or "7 losses" in trend.reason


@pytest.mark.parametrize("seed", range(20))
def test_flat_noise_is_flat(seed):
    trend = judge_series(2.303 + noise(100, 0.1, seed), chance=CHANCE)
    assert trend.kind == "flat"
    assert trend.failing


@pytest.mark.parametrize(("percent", "kind"), [(0.9, "flat"), (1.3, "falls")])
def test_the_smallest_fall_that_counts(percent, kind):
    # a straight line: the medians of the first and last fifth see 80 % of the whole fall
    assert judge_series(np.linspace(1.0, 1.0 - percent / 100 / 0.8, 100)).kind == kind


def test_a_small_fall_in_a_short_run_is_too_early_to_tell():
    trend = judge_series(np.linspace(1.0, 0.995, 20))
    assert trend.kind == "unknown"
    assert "too short" in trend.reason
    assert judge_series(np.linspace(1.0, 0.995, 30)).kind == "flat"


def test_learning_only_the_class_frequencies_is_no_fall():
    losses = CHANCE + 0.1 * np.exp(-np.arange(60) / 12)
    assert judge_series(losses).kind == "falls"
    assert judge_series(losses, chance=CHANCE).kind == "flat"


def test_a_slow_start_above_chance_that_still_falls_is_too_early_to_tell():
    trend = judge_series(np.linspace(2.45, 2.35, 60), chance=CHANCE)
    assert trend.kind == "unknown"
    assert "constant prediction" in trend.reason


def test_a_fast_fall_to_a_floor_is_converged():
    trend = judge_series(1 + 9 * np.exp(-np.arange(100) / 2) + noise(100, 0.05))
    assert trend.kind == "converged"
    assert trend.learning


def test_a_pretrained_model_at_its_floor_is_converged():
    losses = 0.05 + np.abs(noise(100, 0.01))
    assert judge_series(losses, chance=CHANCE).kind == "converged"
    assert judge_series(losses).kind == "flat"  # without knowing the chance level nobody can tell


def test_recovering_from_a_jump_is_no_fall():
    losses = np.concatenate([[2.3, 40, 30, 20, 10, 5, 4, 3, 2.5, 2.4], 2.35 + noise(30, 0.02)])
    assert judge_series(losses, chance=CHANCE).kind == "flat"


@pytest.mark.parametrize("tau", [10.0, 20.0, 50.0])
def test_a_growing_loss_rises(tau):
    trend = judge_series(2.3 * np.exp(np.arange(60) / tau))
    assert trend.kind == "rises"
    assert trend.drop < -0.2


@pytest.mark.parametrize(("rise", "kind"), [(0.15, "flat"), (0.3, "rises")])
def test_the_smallest_rise_that_counts(rise, kind):
    assert judge_series(np.linspace(1.0, 1.0 + rise / 0.8, 100)).kind == kind


def test_falling_and_coming_back_rises():
    assert judge_series(np.concatenate([decay(50, 15), 2.2 + noise(50, 0.02)])).kind == "rises"


def test_falling_and_coming_back_a_little_does_not_rise():
    assert judge_series(np.concatenate([decay(50, 15), 0.5 + noise(50, 0.02)])).learning


@pytest.mark.parametrize("seed", range(30))
def test_noise_never_rises(seed):
    assert judge_series(2.3 + noise(100, 0.3, seed)).kind != "rises"


def test_wiggles_of_an_epoch_do_not_hide_a_fall():
    losses = decay(200, 150) + 0.2 * np.sin(2 * np.pi * np.arange(200) / 10)
    assert judge_series(losses).kind == "falls"


def test_wiggles_of_an_epoch_alone_are_flat():
    assert judge_series(2.3 + 0.2 * np.sin(2 * np.pi * np.arange(200) / 10)).kind == "flat"


def test_too_much_noise_is_unknown():
    trend = judge_series(np.abs(5 + noise(30, 4)))
    assert trend.kind == "unknown"
    assert "noise" in trend.reason


def test_ending_in_nan_is_non_finite_from_its_first_step():
    trend = judge_series([*np.linspace(2, 1, 20), *[math.nan] * 3])
    assert trend.kind == "non-finite"
    assert trend.first_nonfinite == 20
    assert trend.failing


def test_half_of_the_losses_infinite_is_non_finite():
    assert judge_series([1.0, math.inf] * 10 + [1.0]).kind == "flat"
    assert judge_series([math.inf, 1.0] * 10).kind == "non-finite"


def test_one_bad_batch_does_not_end_the_judgement():
    losses = np.linspace(2, 1, 40)
    losses[11] = math.nan
    trend = judge_series(losses)
    assert trend.kind == "falls"
    assert trend.first_nonfinite == 11


def test_nothing_but_nan():
    assert judge_series([math.nan] * 5).kind == "non-finite"


def test_a_loss_without_bound_need_not_fall():
    assert judge_series(np.full(50, 2.0), lower_bound=-math.inf).kind == "unknown"
    assert judge_series(np.linspace(3, -3, 50), lower_bound=-math.inf).kind == "falls"


def test_judge_reads_steps_and_chance():
    recording = Builder(60).loss(lambda s: CHANCE + 0.1 * math.exp(-s / 12)).done()
    assert judge(recording).kind == "falls"
    recording.facts.update(loss_family="cross_entropy", classes=10, loss_lower_bound=0.0)
    assert judge(recording).kind == "flat"


def test_judge_takes_the_constant_of_the_overfit_experiment():
    def course(step: int) -> float:
        return 1.0 + 9.0 * math.exp(-step / 3)

    assert judge(Builder(100).loss(course).done()).learning
    trend = judge(Builder(100).loss(course).arm("overfit/own", [1.0], constant=1.0).done())
    assert trend.kind == "unknown"
    assert "constant prediction" in trend.reason
    assert judge(Builder(100).loss(course).arm("overfit/own", [1.0], constant=1.1).done()).learning


@pytest.mark.parametrize(("std", "kind"), [(1.0, "unknown"), (1.2, "falls")])
def test_judge_takes_the_variance_of_the_targets_for_a_squared_error(std, kind):
    build = Builder(100).loss(lambda step: 1.0 + 2.0 * math.exp(-step / 20)).facts(loss_family="mse")
    target = build.value((32, 1), std=std)
    build.backward(build.operation("mse_loss", build.weight("w"), target, shape=(), reduction="mean"))
    assert judge(build.done()).kind == kind


def test_falling_back_to_chance_from_a_jump_is_not_learning_yet():
    losses = np.concatenate([[1.7], 40 * np.exp(-np.arange(99) / 18) + math.log(5)])
    trend = judge_series(losses, chance=math.log(5))
    assert not trend.learning


def test_a_sum_of_losses_has_no_known_chance():
    build = Builder(60).loss(lambda s: 64 * (2.3 - 0.03 * s)).facts(loss_family="cross_entropy", classes=10)
    assert judge(build.done()).kind == "falls"
    build.backward(build.operation("cross_entropy", build.weight("w"), shape=(), reduction="sum"))
    assert judge(build.done()).kind == "falls"


@pytest.mark.parametrize(
    ("fact", "losses", "kind"),
    [
        ("moving_target", 2.0, "unknown"),
        ("moving_target", lambda s: 2 - 0.02 * s, "unknown"),  # a discriminator that wins is no success
        ("several_optimizers", 2.0, "unknown"),
        ("several_optimizers", lambda s: 2 + 0.1 * s, "unknown"),
        ("several_optimizers", lambda s: 2 - 0.02 * s, "falls"),
    ],
)
def test_losses_that_play_against_each_other_need_not_fall(fact, losses, kind):
    trend = judge(Builder(50).loss(losses).facts(**{fact: True}).done())
    assert trend.kind == kind
    assert bool(trend.reason) is (kind == "unknown")


def test_non_finite_is_said_even_of_those():
    assert judge(Builder(50).loss(math.nan).facts(moving_target=True).done()).kind == "non-finite"


def test_of_several_losses_the_learning_one_speaks():
    both = Builder(50).loss(2.0, "a").loss(lambda s: 2 - 0.02 * s, "b").done()
    assert judge(both).kind == "falls"
    assert judge(Builder(50).loss(2.0, "a").loss(1.0, "b").done()).kind == "flat"


def _two_phases(second, spans, parameters=(("body.weight",), ("head.weight",))):
    """A loss that fell to 0.1, and then is `second`, made by two optimizers with the given first and last steps."""
    losses = np.concatenate([np.linspace(2.3, 0.1, 40), np.full(40, 1.0) * second])
    build = Builder(80).loss(losses)
    for names in parameters:
        build.optimizer(parameters=names)
    optimizers = build.recording.optimizers
    build.recording.optimizers = [replace(o, span=span) for o, span in zip(optimizers, spans, strict=True)]
    return build.done()


def test_a_new_head_begins_anew():
    """The loss jumps where another optimizer takes over for other parameters: that is no divergence."""
    fell = np.linspace(2.4, 0.3, 40)
    assert judge(_two_phases(fell, [(0, 39), (40, 79)])).kind == "falls"
    assert judge(_two_phases(fell, [(0, 39), (40, 79)])).steps == 40


@pytest.mark.parametrize(
    ("spans", "parameters"),
    [
        ([(0, 79), (40, 79)], (("body.weight",), ("head.weight",))),
        ([(0, 39), (40, 79)], (("body.weight",), ("body.weight",))),
        ([(0, 39), (75, 79)], (("body.weight",), ("head.weight",))),
    ],
    ids=["the first goes on", "the same parameters", "too short to be judged"],
)
def test_what_is_no_new_phase(spans, parameters):
    assert judge(_two_phases(np.linspace(2.4, 0.3, 40), spans, parameters)).steps == 80


def test_no_loss_is_unknown():
    trend = judge(Recording())
    assert (trend.kind, trend.reason) == ("unknown", "no loss was seen")


def test_a_hand_written_loss_that_is_never_negative_is_bounded():
    assert judge(Builder(50).loss(2.0).facts(loss_family="custom", loss_lower_bound=-math.inf).done()).kind == "flat"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200))
def test_any_series_gets_a_known_kind(values):
    trend = judge_series(values)
    assert trend.kind in {"falls", "converged", "flat", "rises", "non-finite", "unknown"}
    assert (trend.kind == "unknown") == bool(trend.reason)


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 300), st.floats(0.01, 100), st.integers(0, 1000))
def test_the_unit_of_the_loss_does_not_matter(n, unit, seed):
    losses = decay(n, n / 3) + noise(n, 0.05, seed) + 1
    assert judge_series(losses).kind == judge_series(unit * losses).kind


def test_what_an_adversary_takes_back_of_a_fast_start_is_no_rise():
    """Gradient reversal: the loss falls within 30 steps, then the adversary's part grows as its strength does."""
    random = np.random.default_rng(0)
    fast = 0.2 + 1.6 * np.exp(-np.arange(1500) / 10)
    later = fast + 0.5 * np.arange(1500) / 1500 + 0.02 * random.normal(size=1500)
    assert judge_series(later).kind != "rises"
    assert judge_series(later + 0.8 * np.arange(1500) / 1500).kind == "rises"  # most of it is lost again
