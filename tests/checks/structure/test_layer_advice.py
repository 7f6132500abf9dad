"""Advice on layers: biases before norms, layers without one, dropout that drops nothing."""

from __future__ import annotations

import pytest

from netdoctor.checks.structure.bias_before_norm import BiasBeforeNorm
from netdoctor.checks.structure.missing_bias import MissingBias
from netdoctor.checks.structure.recurrent_dropout import RecurrentDropout
from netdoctor.finding import Finding, Severity
from tests.checks.builders import Builder


def layer(build: Builder, path: str, then: str, bias: bool = True, **attributes: float | bool) -> Builder:
    """A linear layer and what reads its result."""
    vector = (
        (build.value((16,), origin="parameter", name=f"{path}.bias", requires_grad=True, trained=True),) if bias else ()
    )
    build.linear(path, bias=bias, line=5)
    weight = build.weight(f"{path}.weight")
    made = build.operation("linear", build.value((8, 16)), weight, *vector, module=path)
    return build.backward(build.operation("sum", build.operation(then, made, **attributes), shape=()))


def biases(build: Builder) -> list[Finding]:
    found = list(BiasBeforeNorm().judge(build.done()))
    assert all(finding.severity is Severity.ADVICE for finding in found)
    return found


@pytest.mark.parametrize(
    ("then", "bias", "attributes", "fires"),
    [
        ("batch_norm", True, {}, True),
        ("instance_norm", True, {}, True),
        ("batch_norm", False, {}, False),
        ("layer_norm", True, {}, False),
        ("relu", True, {}, False),
        ("batch_norm", True, {"training": False}, False),
        ("batch_norm", True, {"5": False}, False),
    ],
)
def test_a_bias_that_the_norm_takes_away(then: str, bias: bool, attributes: dict[str, bool], fires: bool) -> None:
    assert bool(biases(layer(Builder(), "conv", then, bias, **attributes))) is fires


def test_a_result_that_is_read_elsewhere_keeps_its_bias() -> None:
    build = layer(Builder(), "conv", "batch_norm")
    made = build.graph.operations[0].outputs[0]
    build.operation("relu", made)
    assert biases(build) == []


def bare(*layers: tuple[bool, str]) -> list[Finding]:
    build = Builder()
    for number, (bias, then) in enumerate(layers):
        layer(build, str(number), then, bias)
    return list(MissingBias().judge(build.done()))


def test_layers_without_a_bias_before_an_activation() -> None:
    (finding,) = bare((False, "relu"), (False, "gelu"))
    assert finding.places == ("0", "1")
    assert (finding.severity, finding.location.line) == (Severity.ADVICE, 5)


@pytest.mark.parametrize(("with_bias", "fires"), [(1, True), (2, False)])
def test_the_share_of_layers_without(with_bias: int, fires: bool) -> None:
    assert bool(bare((False, "relu"), *[(True, "relu")] * with_bias)) is fires


def test_silent_before_norms_and_where_the_activation_gates() -> None:
    assert bare((False, "batch_norm"), (False, "add")) == []
    build = layer(Builder(), "gate", "silu", bias=False)
    activated = build.graph.operations[1].outputs[0]
    build.operation("mul", activated, build.value((8, 16)))
    assert list(MissingBias().judge(build.done())) == []


def recurrent(layers: int, p: float, packed: bool = False, name: str = "lstm") -> list[Finding]:
    build, first = Builder(), 4 if packed else 3
    attributes: dict[str, float | bool] = {str(first): True, str(first + 1): layers, str(first + 2): p}
    attributes[str(first + 3)] = True
    made = build.operation(name, build.value((8, 5, 4)), build.weight("r.weight_ih_l0"), module="r", **attributes)
    build.layer("r", "LSTM", line=6)
    return list(RecurrentDropout().judge(build.backward(build.operation("sum", made, shape=())).done()))


@pytest.mark.parametrize(("layers", "p", "fires"), [(1, 0.0, False), (1, 0.1, True), (2, 0.1, False)])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_between_layers_that_are_not_there(layers: int, p: float, fires: bool, packed: bool) -> None:
    assert bool(recurrent(layers, p, packed)) is fires


def test_only_recurrent_functions_are_read() -> None:
    assert recurrent(1, 0.5)[0].location.line == 6
    assert recurrent(1, 0.5, name="conv1d") == []
