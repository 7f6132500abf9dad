"""Verdicts on hand-made curves: just below and above each limit, and what must never be called a cure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdoctor.experiments.verdict import Scale, decide, scale_of
from netdoctor.finding import Verdict

STEPS = 60
NAN = math.nan


def falling(start: float, end: float, noise: float = 0.02, steps: int = STEPS, seed: int = 0) -> list[float]:
    course = end + (start - end) * np.exp(-np.arange(steps) / (steps / 6))
    return list(course + noise * np.random.default_rng(seed).standard_normal(steps))


def flat(level: float, noise: float = 0.02, steps: int = STEPS) -> list[float]:
    return list(level + noise * np.random.default_rng(1).standard_normal(steps))


CHANCE = Scale(0.0, 2.3)


def test_cured_when_only_the_treated_arm_trains() -> None:
    assert decide(flat(2.3), falling(2.3, 0.2), CHANCE) is Verdict.CURED


def test_no_effect_when_neither_trains() -> None:
    assert decide(flat(2.3), flat(2.3), CHANCE) is Verdict.NO_EFFECT


def test_not_reproduced_when_the_control_trains_as_well() -> None:
    assert decide(falling(2.3, 0.2), falling(2.3, 0.18), CHANCE) is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize(("end", "verdict"), [(2.0, Verdict.EASED), (1.7, Verdict.CURED)])
def test_a_cure_loses_a_fifth_of_the_loss(end: float, verdict: Verdict) -> None:
    assert decide(flat(2.3, 0.005), falling(2.3, end, 0.005), CHANCE) is verdict


def test_worse_when_the_treated_arm_rises_or_breaks() -> None:
    assert decide(flat(2.3), falling(2.3, 4.0), CHANCE) is Verdict.WORSE
    assert decide(flat(2.3), [2.3, 5.0, NAN], CHANCE) is Verdict.WORSE
    assert decide(falling(2.3, 0.2), flat(2.3), CHANCE) is Verdict.WORSE


def test_eased_when_a_healthy_control_is_left_a_little_behind() -> None:
    assert decide(falling(2.3, 1.0), falling(2.3, 0.8), CHANCE) is Verdict.EASED


def test_cured_when_the_control_learns_less_than_half_as_much() -> None:
    assert decide(falling(2.3, 1.75, 0.005), falling(2.3, 0.3, 0.005), CHANCE) is Verdict.CURED
    assert decide(falling(2.3, 1.1, 0.005), falling(2.3, 0.3, 0.005), CHANCE) is Verdict.EASED


def test_what_is_lost_above_the_constant_prediction_is_no_training() -> None:
    """From 8e9 to 1e6 is a fall, and still no better than predicting the mean."""
    huge = list(np.geomspace(8e9, 1e6, STEPS))
    assert decide(huge, falling(1.3, 0.2), Scale(0.0, 1.0)) is Verdict.CURED
    assert decide(huge, falling(40.0, 1.2), Scale(0.0, 1.0)) is Verdict.EASED
    assert decide(huge, list(np.geomspace(6e9, 2e6, STEPS)), Scale(0.0, 1.0)) is Verdict.NO_EFFECT


def test_breakdown() -> None:
    broken = [2.3, 2.2, NAN]
    assert decide(broken, falling(2.3, 0.5), CHANCE) is Verdict.CURED
    assert decide(broken, flat(2.3), CHANCE) is Verdict.EASED
    assert decide(broken, [2.3, 2.3, 2.3, 2.3, NAN], CHANCE) is Verdict.NO_EFFECT
    assert decide(broken, [2.3, 2.3, 2.3, 2.3, 2.3, NAN], CHANCE) is Verdict.EASED


def test_a_finite_control_does_not_show_a_breakdown() -> None:
    assert decide(flat(2.3), falling(2.3, 0.2), CHANCE, only_finite=True) is not Verdict.CURED
    assert decide(falling(2.3, 0.5), falling(2.3, 0.5), CHANCE, only_finite=True) is Verdict.NOT_REPRODUCED


def test_a_trouble_that_is_built_in_shows_whatever_the_loss_does() -> None:
    control, treated = falling(2.3, 0.6, 0.005), falling(2.3, 0.1, 0.005)
    assert decide(control, treated, CHANCE) is Verdict.EASED
    assert decide(control, treated, CHANCE, built_in=True) is Verdict.CURED
    assert decide(control, control, CHANCE, built_in=True) is Verdict.NO_EFFECT


def test_too_short_to_tell() -> None:
    assert decide(flat(2.3)[:7], falling(2.3, 0.1), CHANCE) is None
    assert decide([NAN], falling(2.3, 0.1)[:7], CHANCE) is None
    assert decide([NAN], falling(2.3, 0.1), CHANCE) is Verdict.CURED


def test_arms_of_different_length_are_compared_over_the_shorter() -> None:
    assert decide(flat(2.3, steps=20), falling(2.3, 0.1, steps=60), CHANCE) is not None
    assert decide(falling(2.3, 0.1), falling(2.3, 0.1)[:20], CHANCE) is not Verdict.WORSE


@pytest.mark.parametrize(
    ("bound", "curve", "expected"), [(0.0, [1.0], 0.0), (-math.inf, [3.0, 1.0], 0.0), (-math.inf, [1.0, -2.0], -5.0)]
)
def test_the_bound(bound: float, curve: list[float], expected: float) -> None:
    assert scale_of(bound, None, curve, [NAN]).bound == expected


@given(st.floats(0.01, 1e6), st.floats(0.0, 0.05), st.floats(0.0, 0.2), st.integers(0, 2**32 - 1))
def test_no_cure_of_a_control_that_trains(start: float, noise: float, end: float, seed: int) -> None:
    """Whatever the treated arm does, a control that loses 80 % of its loss showed no trouble."""
    control = [max(x, 0.0) for x in falling(start, end * start, noise * start, seed=seed)]
    for treated in (falling(start, 0.0, 0.0), flat(start, 0.0), [0.0] * STEPS):
        assert decide(control, treated, Scale(0.0, None)) is not Verdict.CURED


@given(st.floats(1e-3, 1e3))
def test_units_do_not_matter(unit: float) -> None:
    for one, other in ((flat(2.3), falling(2.3, 0.2)), (falling(2.3, 1.0), falling(2.3, 0.8)), (flat(2.3), flat(2.3))):
        scaled = decide([unit * x for x in one], [unit * x for x in other], Scale(0.0, 2.3 * unit))
        assert scaled is decide(one, other, CHANCE)
