from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from netdoctor.finding import Evidence, Trial, Verdict
from netdoctor.recording import Arm, Recording, Role, Series, Stat, Track
from netdoctor.render import figures, palette
from netdoctor.render.sheet import Drawing
from tests.render import builders

STEPS = np.arange(4, dtype=np.int64)
ODD = {
    "all NaN": np.full(4, math.nan),
    "infinite": np.array([1, math.inf, -math.inf, 2.0]),
    "zero": np.zeros(4),
    "negative": np.array([-1e9, 3, -2, 0.0]),
    "huge": np.array([1e308, -1e308, 1.7e308, 1.0]),
    "tiny": np.array([5e-324, 1e-310, 1e-300, 1.0]),
    "one point": np.array([1.0]),
    "empty": np.array([]),
    "constant": np.full(4, 2.5),
}


def parsed(drawing: Drawing | None) -> ET.Element:
    assert drawing is not None
    return ET.fromstring(drawing.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def words(drawing: Drawing | None) -> str:
    return " ".join("".join(e.itertext()) for e in parsed(drawing).iter() if e.tag.endswith("text"))


@pytest.mark.parametrize("values", ODD.values(), ids=ODD.keys())
def test_odd_values_are_drawn(values: np.ndarray) -> None:
    steps = STEPS[: len(values)]
    made = builders.recording(1)
    made.losses = {"a": Series(steps, values), "b": Series(steps, values)}
    made.scalars = {"lr": Series(steps, values), "evaluation loss": Series(steps, values)}
    made.tracks = {key: Track(steps, values) for key in made.tracks}
    made.arms = {"trial/a": Arm("trial/a", values)}
    site = made.layers[0].site(Role.OUTPUT)
    drawn = [figures.loss_curve(made), figures.depth_profile(made), *figures.arms(made)]
    limits = zip((*values[:2], 1.0), (0.0, 1e3, math.inf), strict=False)
    drawn += [figures.evidence(made, Evidence("x", m, ">", v, "", site, Stat.RMS)) for m, v in limits]
    drawn.append(figures.trial(Trial(Verdict.CURED, tuple(values), tuple(values))))
    for drawing in drawn:
        if drawing is not None:
            parsed(drawing)
    assert len(values) == 0 or drawn[0] is not None


def test_an_empty_recording_has_no_figures() -> None:
    nothing = Recording()
    assert figures.loss_curve(nothing) is None
    assert figures.depth_profile(nothing) is None
    assert figures.arms(nothing) == []
    assert figures.trial(Trial(Verdict.COULD_NOT_RUN)) is None


def test_the_first_broken_loss_is_marked() -> None:
    drawing = figures.loss_curve(builders.recording(nan_at=42))
    assert "not a number at step 42" in words(drawing)
    assert drawing is not None
    assert "NaN at step 42" in drawing.alt


def test_changes_of_the_learning_rate_are_marked_and_schedules_get_a_panel() -> None:
    made = builders.recording()
    assert "lr 0.001 → 1e-4" in words(figures.loss_curve(made))
    made.scalars["lr"] = Series(np.arange(100), np.linspace(1e-3, 1e-4, 100))
    assert "→" not in words(figures.loss_curve(made))
    assert re.search(r"\blr\b", words(figures.loss_curve(made)))


def test_evidence_is_its_track_with_the_limit() -> None:
    made = builders.recording()
    on_track = builders.root(made).evidence[0]
    assert "limit 0.25" in words(figures.evidence(made, on_track))
    assert "step" in words(figures.evidence(made, on_track))


def test_a_number_that_is_not_on_the_track_is_shown_beside_its_limit_instead() -> None:
    made = builders.recording()
    derived = replace(builders.root(made).evidence[0], measured=2.3e4, limit=1e3)
    for recording in (made, None):
        said = words(figures.evidence(recording, derived))
        assert "limit 1000" in said
        assert "23000" in said
        assert "step" not in said


def test_dead_units_are_counted_over_the_window() -> None:
    made = builders.recording()
    assert "step" in words(figures.evidence(made, builders.dead(made).evidence[0]))


def test_three_hundred_layers_keep_their_labels_apart() -> None:
    drawing = figures.depth_profile(builders.recording(150, growth=1.3))
    assert words(drawing).count("body.") <= figures.LABELS


def test_drawings_are_deterministic_and_ids_do_not_collide() -> None:
    made = builders.recording()
    first, again = figures.depth_profile(made, name="a"), figures.depth_profile(made, name="a")
    other = figures.depth_profile(made, name="b")
    assert first is not None
    assert other is not None
    assert first == again
    ids = [set(re.findall(r'\bid="([^"]*)"', drawing.svg)) for drawing in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', first.svg))
    assert used
    assert used <= ids[0]


def test_hostile_names_stay_text() -> None:
    made = builders.recording(2)
    made.layers[0] = replace(made.layers[0], path=builders.EVIL)
    made.losses = {builders.EVIL: made.losses["loss"], "$\\frac{": made.losses["loss"], "损失": made.losses["loss"]}
    made.arms = {builders.EVIL: Arm(builders.EVIL, np.ones(3))}
    drawn = [figures.loss_curve(made), figures.depth_profile(made), *figures.arms(made)]
    for drawing in drawn:
        assert not any(e.tag.endswith("script") for e in parsed(drawing).iter())
    assert "$\\frac{" in words(drawn[0])


def test_the_users_matplotlib_settings_are_neither_used_nor_changed() -> None:
    expected = figures.trial(builders.trial())
    with matplotlib.rc_context({"font.size": 40, "lines.linewidth": 9}):
        assert figures.trial(builders.trial()) == expected
        assert matplotlib.rcParams["font.size"] == 40


def test_neither_pyplot_nor_matplotlib_is_imported_early() -> None:
    code = (
        "import sys; from netdoctor.render import figures, html; early = 'matplotlib' in sys.modules\n"
        "from tests.render import builders; assert figures.trial(builders.trial())\n"
        "print(early, 'matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


@pytest.mark.parametrize("depth", [1, 4, 5, 300])
def test_every_layer_has_a_colour_of_its_own_and_its_parameters_share_it(depth: int) -> None:
    made = builders.recording(depth, growth=1.01)
    colours = palette.of_layers(made)
    assert len(colours) == 2 * depth
    assert all(re.fullmatch("#[0-9a-f]{6}", c) for c in colours.values())
    assert depth == 300 or len(set(colours.values())) == len(colours)
    weight = made.parameters["body.0.weight"].site(Role.UPDATE)
    assert palette.of_site(colours, weight) == colours["body.0"]
    assert palette.of_site(colours, replace(weight, module="")) == colours["body.0"]
