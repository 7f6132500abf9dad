"""exploding-activations on hand-made recordings."""

from __future__ import annotations

import pytest

from netdoctor.checks.signal.exploding_activations import ExplodingActivations
from netdoctor.finding import Severity
from netdoctor.recording import Stat
from tests.checks.builders import Curve
from tests.checks.signal.chains import FALLING, FLAT, chain, findings

CHECK = ExplodingActivations()


def geometric(decades: float, layers: int = 7) -> list[float]:
    return [10 ** (decades * k / (layers - 1)) for k in range(layers)]


@pytest.mark.parametrize(("decades", "fires"), [(2.9, False), (3.01, True), (6.0, True)])
def test_total_growth_over_depth_decides(decades: float, fires: bool) -> None:
    assert bool(findings(CHECK, chain(geometric(decades)).done())) is fires


def test_it_names_the_start_and_the_numbers() -> None:
    found = findings(CHECK, chain([1.0, *geometric(6)], weight=[0.01] + [0.1] * 7).done())[0]
    assert (found.location.module, found.location.line) == ("body.4", 12)
    assert found.severity is Severity.ERROR
    assert found.evidence[0].measured > 1e5
    assert "model.body[0].weight" in found.fixes[1].code


def test_the_first_layer_is_named_when_its_weights_are_alike() -> None:
    assert findings(CHECK, chain(geometric(6)).done())[0].location.module == "body.0"


def test_training_that_learns_makes_it_a_warning() -> None:
    assert findings(CHECK, chain(geometric(6), FALLING).done())[0].severity is Severity.WARNING


def test_an_overflow_counts() -> None:
    levels = [*geometric(6), float("inf")]
    assert findings(CHECK, chain(levels).done())[0].severity is Severity.ERROR


@pytest.mark.parametrize(
    "levels",
    [
        [1e6] * 7,  # large but constant
        [1.0, 1.0, 1.0, 1e4, 1e4, 1e4],  # two towers of different scale
        [1.0, 1e2, 1e4],  # too short
        [1.0, 0.01, 1.0, 0.01, 1.0, 0.01, 1.0],  # residual ends that start small
        geometric(-6),
    ],
)
def test_it_stays_silent(levels: list[float]) -> None:
    assert not findings(CHECK, chain(levels).done())


def test_two_models_are_two_chains() -> None:
    build = chain([1.0, 1.0, 1.0, 1.0], model="generator")
    for index in range(4):
        build.linear(f"critic.{index}", rms=1e5, model="critic")
    assert not findings(CHECK, build.done())


@pytest.mark.parametrize(("grown", "fires"), [(900.0, False), (1100.0, True)])
def test_growth_over_steps(grown: float, fires: bool) -> None:
    build = chain([1.0] * 4)
    end = float(build.steps[-1])
    build.of_layer("body.2", Stat.RMS, lambda step: grown ** (step / end))
    assert bool(findings(CHECK, build.done())) is fires


def test_growth_begins_where_it_passed_the_limit_and_not_with_one_update() -> None:
    """What the first update does is the rate's doing: learning-rate-too-high (from step 1 on) is its cause."""
    for level, first in ((lambda step: 1e6 ** (step / 59), 30), (lambda step: 1e4 * 1.1**step if step else 1.0, 2)):
        build = chain([1.0] * 4)
        build.of_layer("body.2", Stat.RMS, level)
        (found,) = findings(CHECK, build.done())
        assert found.first_step is not None
        assert first <= found.first_step <= first * 1.1


@pytest.mark.parametrize(
    ("levels", "loss"),
    [
        ([1.0, lambda step: 1e4 if step > 20 else 1.0, 1.0, 1.0], FLAT),  # stopped growing
        ([1.0, lambda step: 1e4 ** (step / 59), 1.0, 1.0], FALLING),  # learns
        ([1.0, lambda step: 1e-6 * 1e5 ** (step / 59), 1.0, 1.0], FLAT),  # recovers from nothing
        ([1.0, 1.0, 1.0, lambda step: 1e5 ** (step / 59)], FLAT),  # the output layer
    ],
)
def test_growth_over_steps_stays_silent(levels: list[Curve], loss: Curve) -> None:
    assert not findings(CHECK, chain(levels, loss).done())
