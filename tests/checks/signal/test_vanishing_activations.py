"""vanishing-activations on hand-made recordings."""

from __future__ import annotations

import pytest

from netdoctor.checks.signal.vanishing_activations import VanishingActivations
from netdoctor.finding import Severity
from tests.checks.signal.chains import FALLING, FLAT, chain, findings

CHECK = VanishingActivations()


def shrinking(decades: float, layers: int = 8) -> list[float]:
    return [10 ** (-decades * k / (layers - 1)) for k in range(layers)]


@pytest.mark.parametrize(("decades", "fires"), [(2.9, False), (3.01, True), (7.0, True)])
def test_total_decay_over_depth_decides(decades: float, fires: bool) -> None:
    found = findings(CHECK, chain(shrinking(decades)).done())
    assert bool(found) is fires
    assert all(f.severity is Severity.ERROR and f.location.module == "body.0" for f in found)


def test_the_variation_counts_not_the_scale() -> None:
    recording = chain([0.1] * 8, variation=shrinking(5)).done()
    assert findings(CHECK, recording)[0].evidence[0].measured == pytest.approx(1e-5)


def test_default_initialisation_that_learns_and_recovers_is_silent() -> None:
    levels = [lambda step, k=k: 0.4**k if step < 20 else 1.0 for k in range(12)]
    assert not findings(CHECK, chain(levels, FALLING).done())


def test_a_signal_that_stays_gone_is_a_warning_though_the_loss_falls() -> None:
    assert findings(CHECK, chain(shrinking(5), FALLING).done())[0].severity is Severity.WARNING


@pytest.mark.parametrize(
    ("decades", "still", "end", "fires"),
    [(5.0, 0.3, 1.6, True), (3.9, 0.3, 1.6, False), (5.0, 0.1, 1.6, False), (5.0, 0.3, 0.9, False)],
)
def test_a_run_that_lost_its_beginning(decades: float, still: float, end: float, fires: bool) -> None:
    """The signal comes back at step 20 of 40; until then, or for less, nothing was learned."""
    levels = [lambda step, k=k: 10 ** (-decades * k / 7) if step < 20 else 1.0 for k in range(8)]
    loss = lambda step: 2.3 if step <= 40 * still else 2.3 + (end - 2.3) * (step - 40 * still) / (40 * (1 - still))  # noqa: E731
    found = findings(CHECK, chain(levels, loss).done())
    assert [f.severity for f in found] == [Severity.WARNING] * fires


@pytest.mark.parametrize(("left", "fires"), [(1e-5, False), (1e-8, True)])
def test_unknown_training_needs_a_lost_signal(left: float, fires: bool) -> None:
    levels = [left ** (k / 6) for k in range(8)]
    recording = chain([1.0] * 8, variation=levels, steps=2).done()
    assert bool(findings(CHECK, recording)) is fires


@pytest.mark.parametrize(("later", "fires"), [(0.5, False), (1e-8, True)])
def test_a_signal_that_is_lost_at_first_and_comes_back_is_none_of_an_unknown_training(
    later: float, fires: bool
) -> None:
    """The straight-through codebook of an autoencoder: one code for all inputs at first, and a loss with a moving target."""
    levels = [lambda step, k=k: 1e-8 ** (k / 6) if step < 20 else later ** (k / 6) for k in range(8)]
    recording = chain([1.0] * 8, variation=levels).facts(moving_target=True).done()
    assert bool(findings(CHECK, recording)) is fires


def test_sigmoid_stacks_are_left_to_vanishing_gradients() -> None:
    assert not findings(CHECK, chain([0.5] * 8, variation=shrinking(6), activation="Sigmoid").done())
    assert findings(CHECK, chain(shrinking(6), activation="Sigmoid").done())  # the scale shrinks, too


def test_batches_of_one_are_judged_by_the_scale() -> None:
    assert not findings(CHECK, chain([1.0] * 8, variation=[0.0] * 8).done())
    assert findings(CHECK, chain(shrinking(6), variation=[0.0] * 8).done())


@pytest.mark.parametrize(
    "levels",
    [
        [1e-6] * 8,  # small but constant
        [1.0, 1e-2, 1e-4],  # too short
        [1.0, 0.02, 1.0, 0.02, 1.0, 0.02, 1.0],  # transformer branches
        [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.9],  # zero-initialised residual ends
    ],
)
def test_it_stays_silent(levels: list[float]) -> None:
    assert not findings(CHECK, chain(levels, FLAT).done())
