"""vanishing-gradients and exploding-gradients on hand-made recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from netdoctor.checks.signal.exploding_gradients import ExplodingGradients
from netdoctor.checks.signal.vanishing_gradients import VanishingGradients
from netdoctor.finding import Certainty, Severity
from tests.checks.builders import Builder, Curve
from tests.checks.signal.chains import FALLING, FLAT, chain, findings

VANISHING, EXPLODING = VanishingGradients(), ExplodingGradients()


def towards_input(decades: float, layers: int = 8) -> list[float]:
    """Gradients that change by 10**decades from the last layer to the first."""
    return [1e-2 * 10 ** (decades * (1 - k / (layers - 1))) for k in range(layers)]


def with_gradients(gradients: Sequence[Curve], loss: Curve = FLAT, **fields: Any) -> Builder:
    return chain([1.0] * len(gradients), loss, gradients=list(gradients), **fields)


@pytest.mark.parametrize(
    ("decades", "activation", "fires"),
    [(3.9, "ReLU", False), (4.01, "ReLU", True), (2.9, "Sigmoid", False), (3.01, "Sigmoid", True), (3.5, "Tanh", True)],
)
def test_vanishing_limit(decades: float, activation: str, fires: bool) -> None:
    found = findings(VANISHING, with_gradients(towards_input(-decades), activation=activation).done())
    assert bool(found) is fires
    assert all(f.severity is Severity.ERROR and f.location.module == "body.0" for f in found)


def test_sigmoid_stacks_are_told_to_use_relu() -> None:
    sigmoid = findings(VANISHING, with_gradients(towards_input(-6), activation="Sigmoid").done())[0]
    relu = findings(VANISHING, with_gradients(towards_input(-6)).done())[0]
    assert (sigmoid.fixes[0].treatment, relu.fixes[0].treatment) == ("relu-for-sigmoid", "variance-scaling-init")


@pytest.mark.parametrize(("update", "certainty"), [(1e-8, Certainty.MEASURED), (1e-4, Certainty.INFERRED)])
def test_small_updates_make_it_certain(update: float, certainty: Certainty) -> None:
    assert findings(VANISHING, with_gradients(towards_input(-6), update=update).done())[0].certainty is certainty


def test_learning_with_starved_early_layers_is_a_warning() -> None:
    still = with_gradients(towards_input(-6), FALLING, update=1e-9).done()
    assert findings(VANISHING, still)[0].severity is Severity.WARNING
    assert not findings(VANISHING, with_gradients(towards_input(-6), FALLING, update=1e-4).done())


def test_a_profile_that_recovers_is_silent() -> None:
    curves = [lambda step, g=g: g if step < 20 else 1e-2 for g in towards_input(-6)]
    assert not findings(VANISHING, with_gradients(curves, FALLING, update=1e-9).done())


def test_frozen_zero_started_and_dead_weights_are_left_out() -> None:
    gradients = towards_input(-6)
    assert not findings(VANISHING, with_gradients(gradients, requires_grad=False).done())
    assert not findings(VANISHING, with_gradients(gradients, weight=0.0).done())
    assert not findings(VANISHING, with_gradients([0.0] * 8).done())


@pytest.mark.parametrize("fact", ["several_optimizers", "moving_target"])
def test_gan_and_rl_are_silent(fact: str) -> None:
    for check, decades in ((VANISHING, -6.0), (EXPLODING, 6.0)):
        assert not findings(check, with_gradients(towards_input(decades)).facts(**{fact: True}).done())


@pytest.mark.parametrize(("decades", "fires"), [(2.9, False), (3.01, True), (6.0, True)])
def test_exploding_limit(decades: float, fires: bool) -> None:
    found = findings(EXPLODING, with_gradients(towards_input(decades)).done())
    assert bool(found) is fires
    assert all(f.location.module == "body.0" for f in found)


def test_exploding_is_silent_when_training_learns_or_is_too_shallow() -> None:
    assert not findings(EXPLODING, with_gradients(towards_input(6), FALLING).done())
    assert not findings(EXPLODING, with_gradients(towards_input(6, layers=3)).done())


def test_a_loss_that_only_finds_the_mean_does_not_count_as_learning() -> None:
    hardly = [1.1 - 0.08 * (1 - 0.9**step) for step in range(60)]
    recording = with_gradients(towards_input(5), hardly).facts(loss_family="mse").done()
    assert findings(EXPLODING, recording)[0].severity is Severity.ERROR


@pytest.mark.parametrize(("jump", "fires"), [(90.0, False), (110.0, True)])
def test_a_lasting_jump_of_the_norm(jump: float, fires: bool) -> None:
    build = chain([1.0] * 3).scalar("gradient norm", lambda step: jump if step >= 30 else 1.0)
    found = findings(EXPLODING, build.done())
    assert bool(found) is fires
    assert all(f.first_step == 30 for f in found)


@pytest.mark.parametrize(
    "norm",
    [
        lambda step: 1e4 if step == 30 else 1.0,  # one spike
        lambda step: 1e4 if 30 <= step < 40 else 1.0,  # comes back
        lambda step: 1e4 * 0.8**step,  # falls from a high start
        lambda step: 1e4 if step >= 57 else 1.0,  # too late to tell
    ],
)
def test_jumps_that_do_not_last(norm: Curve) -> None:
    assert not findings(EXPLODING, chain([1.0] * 3).scalar("gradient norm", norm).done())


def test_a_divergence_may_be_short() -> None:
    loss = [2.3, 2.2, 2.3, 2.4, 9.0, 1e6, float("nan"), float("nan"), float("nan"), float("nan")]
    norm = [1.0, 1.0, 1.0, 1.0, 2.0, 1e5, float("nan"), float("nan"), float("nan"), float("nan")]
    build = chain([1.0] * 3, loss, steps=10).scalar("gradient norm", norm)
    assert findings(EXPLODING, build.done())[0].first_step == 5


def test_a_gradient_under_the_optimizers_eps_counts_as_starved() -> None:
    build = with_gradients([g * 1e-6 for g in towards_input(-6)])
    first = build.recording.parameters["body.0.weight"]
    assert findings(VANISHING, build.done())[0].certainty is Certainty.INFERRED
    build.recording.parameters["body.0.weight"] = replace(first, optimizer_eps=1e-8)
    assert findings(VANISHING, build.done())[0].certainty is Certainty.MEASURED
