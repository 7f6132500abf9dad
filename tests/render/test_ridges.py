"""The histograms of a parameter over time, as a figure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.recording import Histogram, Recording, Role
from netdoctor.render import figures, history, html, palette, ridges
from tests.render import builders
from tests.render.test_figures import parsed, words
from tests.render.test_history import spread_out


def counted(low: float = -0.5, high: float = 0.5, steps: int = 5) -> Recording:
    """The builders' recording with histograms of the first weight and its gradient; the last row is as given."""
    made = builders.recording()
    counts = np.tile(np.array([1, 5, 30, 60, 30, 5, 1]), (steps, 1))
    ends = np.full(steps, 0.5)
    for role, size in ((Role.WEIGHT, 1.0), (Role.WEIGHT_GRADIENT, 0.01)):
        lows, highs = -ends * size, ends * size
        lows[-1], highs[-1] = low * size, high * size
        made.histograms.append(Histogram("body.0.weight", role, 3 * np.arange(steps), lows, highs, counts))
    return made


def test_a_ridge_per_step_in_the_colour_of_the_layer() -> None:
    made = counted()
    drawn = ridges.ridges(made, "body.0.weight", figures.HALF)
    assert drawn is not None
    assert {"weight", "gradient", "step", "0", "3", "6", "9", "12"} <= set(words(drawn).split())
    assert palette.of_layers(made)["body.0"] in drawn.svg
    assert drawn.alt == (
        "Histograms of body.0.weight over the steps: weight from -0.5 to 0.5 at step 0 and -0.5 to 0.5 at step 12; "
        "gradient from -0.005 to 0.005 at step 0 and -0.005 to 0.005 at step 12"
    )


def test_many_steps_are_thinned_to_those_that_can_be_read() -> None:
    drawn = ridges.ridges(counted(steps=16), "body.0.weight", figures.HALF)
    assert {"0", "45"} <= set(words(drawn).split())
    assert "3" not in words(drawn).split()


@pytest.mark.parametrize(
    "ends", [(math.nan, math.nan), (0.0, 0.0), (7.0, 7.0), (-1e30, 1e30), (-1e-300, 1e-300), (-1e300, 1e300)]
)
def test_odd_rows_are_drawn_or_marked(ends: tuple[float, float]) -> None:
    parsed(ridges.ridges(counted(*ends), "body.0.weight", figures.HALF))
    alone = counted(*ends)
    for at, histogram in enumerate(alone.histograms):
        same = np.full(5, ends[0]), np.full(5, ends[1])
        alone.histograms[at] = Histogram("body.0.weight", histogram.role, histogram.steps, *same, histogram.counts)
    parsed(ridges.ridges(alone, "body.0.weight", figures.HALF))


def test_a_gradient_of_zero_is_said() -> None:
    made = counted()
    zero = np.zeros(5)
    made.histograms[1] = Histogram(
        "body.0.weight", Role.WEIGHT_GRADIENT, np.arange(5), zero, zero, np.ones((5, 7), int)
    )
    assert "gradient: all 0" in words(ridges.ridges(made, "body.0.weight", figures.HALF))


def test_the_page_shows_histograms_and_of_older_recordings_the_bands() -> None:
    made = counted()
    page = html.render(builders.sick(made), made)
    assert "Histograms of body.0.weight over the steps" in page
    assert "the first step at the bottom" in page
    old = spread_out()
    page = html.render(builders.sick(old), old)
    assert "the dark band one standard deviation" in page
    assert "Histograms of" not in page
    assert history.of_interest(made, ()) == ["body.0.weight"]


def test_one_step_is_no_history() -> None:
    made = counted(steps=1)
    assert ridges.ridges(made, "body.0.weight", figures.HALF) is None
    assert "Weights and gradients over time" not in html.render(builders.sick(made), made)
