"""symmetric-initialization on hand-made recordings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netdoctor.checks.signal.symmetric_initialization import SymmetricInitialization
from netdoctor.finding import Severity
from netdoctor.recording import Kind, Role, Stat, Track
from tests.checks.builders import Builder, Curve
from tests.checks.signal.chains import findings

CHECK = SymmetricInitialization()


def layer(
    rows: Curve = 1 / 16, gradient_rows: Curve = 1 / 16, gradient: Curve = 1e-3, weight: Curve = 0.1, **fields: Any
) -> Builder:
    build = Builder(20).linear("hidden", weight_rms=weight, weight_gradient=gradient, line=7, **fields)
    build.of_parameter("hidden.weight", Stat.DISTINCT_ROWS, rows)
    return build.of_parameter("hidden.weight", Stat.DISTINCT_ROWS, gradient_rows, Role.WEIGHT_GRADIENT)


def test_identical_rows_with_identical_gradients() -> None:
    found = findings(CHECK, layer().done())
    assert [(f.severity, f.location.module, f.location.line) for f in found] == [(Severity.ERROR, "hidden", 7)]
    assert "16 units" in found[0].title


@pytest.mark.parametrize(("rows", "fires"), [(1 / 16, True), (2 / 16, False), (1.0, False)])
def test_all_rows_must_be_equal(rows: float, fires: bool) -> None:
    assert bool(findings(CHECK, layer(rows).done())) is fires


@pytest.mark.parametrize(("rows", "fires"), [(0.49, True), (0.5, False), (1.0, False)])
def test_gradients_that_differ_break_the_tie(rows: float, fires: bool) -> None:
    assert bool(findings(CHECK, layer(gradient_rows=rows).done())) is fires


def test_the_first_gradient_that_is_not_zero_decides() -> None:
    late: dict[str, Curve] = {"gradient": lambda step: 0.0 if step == 0 else 1e-3}
    assert not findings(CHECK, layer(gradient_rows=lambda step: 1 / 16 if step == 0 else 1.0, **late).done())
    assert findings(CHECK, layer(**late).done())


def test_zeros_that_never_get_a_gradient_count() -> None:
    assert findings(CHECK, layer(gradient=0.0, weight=0.0).done())
    assert not findings(CHECK, layer(gradient=0.0, weight=0.1).done())


@pytest.mark.parametrize(("rows", "fires"), [(4 / 64, True), (5 / 64, False)])
def test_the_gates_of_an_lstm_may_differ(rows: float, fires: bool) -> None:
    build = layer(rows, type_="LSTM", shape=(64, 16), kind=Kind.RECURRENT)
    assert bool(findings(CHECK, build.done())) is fires


@pytest.mark.parametrize(
    "build",
    [
        layer().facts(pretrained=True),
        layer(requires_grad=False),
        layer(1.0, shape=(1, 16)),
        Builder(20).linear("hidden", weight_rms=0.1),
    ],
)
def test_it_stays_silent(build: Builder) -> None:
    assert not findings(CHECK, build.done())


def adapter(
    weights: tuple[float, float] = (0.0, 0.0), gradients: tuple[float, float] = (0.0, 0.0), sampled: int = 3
) -> Builder:
    """Two factors of a product in one module, with their sizes and gradients in so many sampled steps."""
    build = Builder(steps=60).facts(pretrained=True)
    for name, weight, gradient in zip(("down", "up"), weights, gradients, strict=True):
        build.parameter(f"head.{name}", (6, 64), module="head", module_type="LowRank")
        site = build.recording.parameters[f"head.{name}"].site
        for role, value in ((Role.WEIGHT, weight), (Role.WEIGHT_GRADIENT, gradient)):
            values = np.full(sampled, value)
            build.recording.tracks[site(role), Stat.RMS] = Track(np.arange(sampled), values)
    return build.optimizer("AdamW")


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (adapter(), True),
        (adapter(sampled=2), False),
        (adapter(weights=(0.1, 0.0), gradients=(0.0, 1e-3)), False),  # as an adapter starts
        (adapter(gradients=(0.0, 1e-9)), False),
        (adapter(weights=(0.1, 0.0)), False),
    ],
)
def test_two_factors_at_zero_hold_each_other_there(build: Builder, fires: bool) -> None:
    found = findings(SymmetricInitialization(), build.done())
    assert [f.title for f in found] == ["head.down and head.up all start at zero and never move"] * fires
    assert all(f.fixes[0].code == "torch.nn.init.kaiming_uniform_(model.head.down, a=5**0.5)" for f in found)


@pytest.mark.parametrize(
    ("columns", "gradient", "fires"), [(1 / 8, 1 / 8, True), (2 / 8, 1 / 8, False), (1 / 8, 1.0, False)]
)
def test_the_units_of_a_table_are_its_columns(columns: float, gradient: float, fires: bool) -> None:
    build = layer(columns, gradient).done()
    parameter = replace(build.parameters["hidden.weight"], module_type="Embedding", shape=(300, 8))
    build.parameters["hidden.weight"] = parameter
    build.layers = [replace(one, kind=Kind.EMBEDDING, type="Embedding") for one in build.layers]
    build.tracks = {(replace(site, layer="Embedding"), stat): track for (site, stat), track in build.tracks.items()}
    found = findings(CHECK, build)
    assert bool(found) is fires
    if fires:
        assert "all 8 units of hidden" in found[0].title
        assert found[0].evidence[0].quantity == "share of distinct columns of hidden.weight"
        assert found[0].fixes[0].code == "torch.nn.init.normal_(model.hidden.weight, std=0.1)"
