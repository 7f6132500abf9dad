from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.data.unnormalised_input import UnnormalisedInput
from netdoctor.finding import Certainty, Finding, Severity
from tests.checks.data.facts import facts, learned, reading, rows, stuck


def judged(build) -> list[Finding]:
    return list(UnnormalisedInput().judge(build.done()))


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (400, 16)).astype(float)


def test_pixels_that_stop_training_are_an_error_with_code() -> None:
    (finding,) = judged(reading(facts(pixels(), name="images")))
    assert finding.severity is Severity.ERROR
    assert finding.certainty is Certainty.MEASURED
    assert finding.location.line == 9
    assert finding.location.module == "0"
    assert finding.fixes[0].code.startswith("images = (images - 1")


@pytest.mark.parametrize(("rms", "fires"), [(19.0, False), (21.0, True)])
def test_the_scale_limit(rms: float, fires: bool) -> None:
    assert bool(judged(reading(facts(rows(std=rms))))) is fires


@pytest.mark.parametrize(("rms", "fires"), [(2e-3, False), (5e-4, True)])
def test_the_limit_of_tiny_values(rms: float, fires: bool) -> None:
    assert bool(judged(reading(facts(rows(std=rms))))) is fires


@pytest.mark.parametrize(("mean", "std", "fires"), [(9.0, 1.0, False), (11.0, 1.0, True), (2.0, 0.1, False)])
def test_the_limit_of_the_mean(mean: float, std: float, fires: bool) -> None:
    assert bool(judged(reading(facts(rows(mean, std))))) is fires


@pytest.mark.parametrize("before", ["batch_norm", "layer_norm", "div", "embedding"])
def test_silent_where_something_rescales_first(before: str) -> None:
    assert judged(reading(facts(pixels()), before=before)) == []


def test_a_training_that_works_makes_it_advice() -> None:
    (finding,) = judged(reading(facts(pixels()), loss=learned))
    assert finding.severity is Severity.ADVICE
    assert judged(reading(facts(pixels()), after="batch_norm", loss=learned)) == []
    assert judged(reading(facts(rows(std=30.0)), loss=learned)) == []


def test_a_slow_training_makes_a_flagrant_scale_a_warning() -> None:
    slow = lambda step: float(np.log(10) * (0.7 + 0.3 * 0.97**step))  # noqa: E731
    (finding,) = judged(reading(facts(pixels()), loss=slow))
    assert finding.severity is Severity.WARNING
    assert judged(reading(facts(rows(std=30.0)), loss=slow)) == []


def test_standardised_unit_and_binary_inputs_are_fine() -> None:
    for given in (rows(), pixels() / 255, (pixels() > 128).astype(float)):
        assert judged(reading(facts(given))) == []


def test_a_trial_that_trains_proves_it() -> None:
    build = reading(facts(pixels())).arm("scaling/control", [2.3] * 60).arm("scaling/input", np.geomspace(2.3, 0.2, 60))
    (finding,) = judged(build)
    assert finding.certainty is Certainty.PROVEN
    assert finding.fixes[0].trial is not None


def test_a_trial_without_effect_acquits() -> None:
    build = reading(facts(pixels())).arm("scaling/control", [2.3] * 60).arm("scaling/input", [2.3] * 60)
    (finding,) = judged(build)
    assert finding.severity is Severity.ADVICE
    build = reading(facts(rows(std=30.0))).arm("scaling/control", [2.3] * 60).arm("scaling/input", [2.3] * 60)
    assert judged(build) == []


def test_a_nan_that_no_scale_makes_is_not_blamed_on_it() -> None:
    nan = lambda step: stuck(step) if step < 20 else float("nan")  # noqa: E731
    assert judged(reading(facts(pixels()), loss=nan).origin("forward", operation="log")) == []
    (finding,) = judged(reading(facts(pixels()), loss=nan).origin("forward", "Inf", operation="linear"))
    assert finding.severity is Severity.ERROR


def test_a_moving_target_says_nothing() -> None:
    findings = judged(reading(facts(pixels())).facts(moving_target=True))
    assert [f.severity for f in findings] == [Severity.WARNING]
    assert judged(reading(facts(rows(std=30.0))).facts(moving_target=True)) == []


def test_uneven_columns_are_standardised_one_by_one() -> None:
    uneven = np.column_stack([rows(columns=1, std=1.0), rows(columns=1, mean=900.0, std=300.0)])
    (finding,) = judged(reading(facts(uneven)))
    assert "torch.tensor([" in finding.fixes[0].code


@pytest.mark.parametrize(("with_it", "fires"), [(0.97, True), (0.99, False)])
def test_a_training_that_works_is_warned_where_it_would_learn_twice_as_much(with_it: float, fires: bool) -> None:
    """Of a constant prediction's ln 10 the control learns 0.66, so that twice as much ends at 0.977."""
    still_falling = lambda step: float(np.log(10) * (0.2 + 0.8 * 0.98**step))  # noqa: E731
    build = reading(facts(rows(std=30.0)), loss=still_falling)
    build.arm("scaling/control", [2.3] * 30 + [1.64] * 30).arm("scaling/input", [2.3] * 30 + [with_it] * 30)
    found = judged(build)
    assert [finding.severity for finding in found] == ([Severity.WARNING] if fires else [])
