"""The spread of weights and gradients over time, the range test, and the spikes of a loss."""

from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.finding import Finding, Location, Severity
from netdoctor.recording import Arm, Recording, Role, Series, Stat, Track
from netdoctor.render import figures, history, html, palette
from tests.render import builders
from tests.render.test_figures import parsed, words


def spread_out(depth: int = 3, gradient: float = 0.1) -> Recording:
    """The builders' recording with mean, deviation and extremes of every weight and its gradient."""
    made = builders.recording(depth)
    at = np.arange(20)
    for parameter in made.parameters.values():
        for role, size in ((Role.WEIGHT, 1.0), (Role.WEIGHT_GRADIENT, gradient)):
            for stat, times in ((Stat.MEAN, 0.1), (Stat.STD, 1.0), (Stat.ABSMAX, 3.0)):
                made.tracks[parameter.site(role), stat] = Track(at, np.full(20, size * times))
    return made


def test_weight_and_gradient_have_a_panel_each_in_their_layers_colour() -> None:
    made = spread_out()
    drawn = history.spread(made, "body.2.weight", figures.HALF)
    assert drawn is not None
    assert {"weight", "gradient"} <= set(words(drawn).split())
    assert palette.of_layers(made)["body.2"] in drawn.svg
    assert drawn.alt == (
        "body.2.weight over the steps: standard deviation of the weight 1 → 1, "
        "standard deviation of the gradient 0.1 → 0.1"
    )


def test_a_gradient_of_zero_is_said() -> None:
    assert "gradient: 0 at every step" in words(history.spread(spread_out(gradient=0.0), "body.0.weight", figures.HALF))


def test_odd_numbers_are_drawn_or_left_out() -> None:
    made = spread_out()
    site = made.parameters["body.0.weight"].site(Role.WEIGHT)
    for value in (math.nan, math.inf, 1e308, 0.0):
        made.tracks[site, Stat.MEAN] = Track(np.arange(20), np.r_[np.ones(19), value])
        parsed(history.spread(made, "body.0.weight", figures.HALF))
    made.tracks[site, Stat.MEAN] = Track(np.arange(1), np.ones(1))
    assert "weight" not in words(history.spread(made, "body.0.weight", figures.HALF)).split()
    assert history.spread(builders.recording(), "body.0.weight", figures.HALF) is None


def test_what_findings_name_is_drawn_first_and_the_rest_is_spread_over_the_depth() -> None:
    made = spread_out(20)
    found = Finding("c", "t", Severity.ERROR, "", Location("body.6"))
    assert history.of_interest(made, ()) == [f"body.{2 * at}.weight" for at in (0, 4, 8, 11, 15, 19)]
    chosen = history.of_interest(made, (found,))
    assert "body.6.weight" in chosen
    assert len(chosen) == history.MOST
    assert history.of_interest(builders.recording(), (found,)) == []


def ranged(**facts: float) -> Recording:
    made = builders.recording()
    losses = np.r_[np.linspace(2.3, 0.5, 40), np.linspace(0.5, 90, 10)]
    made.arms["lr-range-test"] = Arm("lr-range-test", losses, 1.0, facts, curves={"lr": np.logspace(-5, 1, 50)})
    return made


def test_the_range_test_marks_its_rates_and_is_drawn_once() -> None:
    made = ranged(lr=0.01, suggested=0.05, steepest=0.1, divergence=math.nan)
    drawn = history.lr_range(made, figures.HALF)
    assert drawn is not None
    text = words(drawn)
    for said in ("the script's 0.01", "suggested 0.05", "falls fastest 0.1"):
        assert said in text
    assert "diverges" not in text
    assert "mathdefault" not in drawn.svg
    assert not any("range" in drawing.alt for drawing in figures.arms(made))
    page = html.render(builders.sick(made), made)
    assert page.count("Loss while the learning rate grows from 1e-5 to 10") == 1


@pytest.mark.parametrize(
    "losses", [np.full(50, math.nan), np.zeros(50), -np.arange(50.0), np.array([1.0]), np.array([])]
)
def test_range_tests_with_odd_losses(losses: np.ndarray) -> None:
    made = ranged()
    made.arms["lr-range-test"] = Arm("lr-range-test", losses, curves={"lr": np.logspace(-5, 1, 50)})
    drawn = history.lr_range(made, figures.HALF)
    assert (drawn is None) == (len(losses) < 2)
    assert history.lr_range(builders.recording(), figures.HALF) is None


def test_spikes_are_sudden_high_and_gone_again() -> None:
    usual = np.ones(60)
    assert figures.spikes(usual) == []
    for value, found in ((3.0, []), (3.01, [30])):
        losses = usual.copy()
        losses[30] = value
        assert figures.spikes(losses) == found
    rising = np.r_[np.ones(30), np.full(30, 9.0)]
    assert [at for at in figures.spikes(rising) if at > 45] == []
    assert figures.spikes(np.r_[np.ones(14), 9.0, 1.0]) == []
    assert figures.spikes(np.array([])) == []
    made = builders.recording()
    losses = made.losses["loss"].values.copy()
    losses[50] *= 20
    made.losses["loss"] = Series(made.losses["loss"].steps, losses)
    assert "spike" in words(figures.loss_curve(made))
    assert "spike" not in words(figures.loss_curve(builders.recording()))


def test_layers_that_end_at_zero_are_marked_where_no_logarithm_is() -> None:
    made = builders.recording()
    assert "last step: 0" not in words(figures.depth_profile(made))
    site = made.layers[1].site(Role.OUTPUT)
    made.tracks[site, Stat.RMS] = Track(np.arange(2), np.zeros(2))
    assert "last step: 0" in words(figures.depth_profile(made))
