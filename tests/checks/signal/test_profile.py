"""Profiles, bands and fixes: the parts that the signal checks share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdoctor.checks.signal import initialisation
from netdoctor.checks.signal.growth import jump
from netdoctor.checks.signal.profile import Profile, profile
from netdoctor.recording import Kind, Layer, Parameter, Recording, Series
from tests.checks.builders import Builder

LAYERS = [Layer(f"net.{k}", "Linear", Kind.LINEAR, k) for k in range(12)]


def of(decades: list[float]) -> Profile:
    return Profile(tuple(LAYERS[: len(decades)]), np.asarray(decades))


@given(st.floats(-3, 3).filter(lambda slope: abs(slope) > 1e-3), st.integers(3, 12), st.floats(-9, 9))
def test_a_straight_line_is_measured_exactly(slope: float, count: int, start: float) -> None:
    found = of([start + slope * k for k in range(count)])
    assert np.isclose(found.slope, slope)
    assert np.isclose(found.total, slope * (count - 1))


@given(st.lists(st.floats(-0.4, 0.4), min_size=4, max_size=12))
def test_noise_around_a_level_has_no_great_total(noise: list[float]) -> None:
    assert abs(of(noise).total) <= 0.8 * 11


@given(st.lists(st.floats(1e-6, 1e6), min_size=4, max_size=12))
def test_reversing_a_profile_turns_its_sign(scales: list[float]) -> None:
    decades = list(np.log10(scales))
    assert np.isclose(of(decades).slope, -of(decades[::-1]).slope)


def test_one_odd_layer_does_not_move_the_line() -> None:
    assert abs(of([0, 0, 0, -9, 0, 0, 0, 0]).total) < 1e-9


def test_unknown_and_zero_scales_are_left_out() -> None:
    scales = [1.0, 0.0, None, 10.0, float("inf")]
    found = profile(LAYERS[:5], lambda layer: scales[layer.order], 2)
    assert found is not None
    assert [layer.order for layer in found.layers] == [0, 3, 4]
    assert np.isfinite(found.decades).all()
    assert profile(LAYERS[:5], lambda layer: scales[layer.order], 4) is None


@pytest.mark.parametrize(
    ("facts", "model", "name", "written"),
    [
        ({}, "", "encoder.layers.0.fc.weight", "model.encoder.layers[0].fc.weight"),
        ({"model_variable": "self.net"}, "", "layers.0.weight", "self.net.layers[0].weight"),
        ({"model_variable": "other"}, "critic", "critic.fc.weight", "critic.fc.weight"),
    ],
)
def test_expressions_can_be_pasted(facts: dict[str, str], model: str, name: str, written: str) -> None:
    parameter = Parameter(name, name.rpartition(".")[0], "Linear", (4, 4), "float32", model=model)
    recording = Recording(parameters={name: parameter}, facts=dict(facts))
    assert initialisation.expression(recording, name) == written


def test_many_layers_make_code_that_parses() -> None:
    for count in (1, 3, 12):
        code = initialisation.fix(Recording(layers=LAYERS[:count]), LAYERS[:count]).code
        compile(code, "fix", "exec")
        assert all(f"net.{k}.weight" in code or f"model.net[{k}].weight" in code for k in range(count))


def test_the_graph_decides_which_activation_follows() -> None:
    build = Builder().linear("fc").activation("other", "Tanh")
    out = build.operation("linear", build.value((4, 16)), build.weight("fc.weight"), module="fc")
    norm = build.operation("layer_norm", out, module="norm")
    build.operation("relu", norm)
    assert initialisation.activation_after(build.done(), build.recording.layers[0]) == "relu"
    build.recording.graph = None
    assert initialisation.activation_after(build.done(), build.recording.layers[0]) == "tanh"


def test_a_jump_reports_the_levels() -> None:
    found = jump(Series(np.arange(20), np.asarray([1.0] * 10 + [500.0] * 10)), 100.0, ends=False)
    assert found is not None
    assert (found.step, found.before, found.level) == (10, 1.0, 500.0)


def test_weights_at_a_usual_scale_put_the_blame_between_the_layers() -> None:
    def first(weight: float, grows: bool) -> str:
        build = Builder()
        for index in range(3):
            build.linear(f"net.{index}", fan_in=64, units=64, weight_rms=weight)
        return initialisation.remedies(build.done(), build.recording.layers, grows=grows)[0].treatment

    between, weights = "rescale-between-layers", "variance-scaling-init"
    assert [first(0.177, grows) for grows in (True, False)] == [between, between]  # He
    assert [first(0.072, grows) for grows in (True, False)] == [between, weights]  # PyTorch's default
    assert first(1.0, True) == weights
