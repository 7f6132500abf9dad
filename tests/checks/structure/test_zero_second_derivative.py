"""Second derivatives of nets of straight pieces: what they are part of, and what is no such thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from netdoctor.checks.structure.second_derivatives import smoothed
from netdoctor.checks.structure.zero_second_derivative import CURVATURE, ZeroSecondDerivative
from netdoctor.finding import Certainty, Severity
from netdoctor.graph import Operation
from tests.checks.structure.models import BATCH, Model, judged

ZERO = {"low": 0.0, "high": 0.0, "requires_grad": True}
LIVE = {"low": -1.0, "high": 1.0, "requires_grad": True}
LINE = "h = F.relu(self.body(x))"


class Equation(Model):
    """A net of one input, its second derivative, and a loss."""

    def __init__(self, *activations: str, second: dict[str, Any] | None = None, of: str = "input") -> None:
        super().__init__()
        self.layers("body", "out").stepping().with_gradient("body.weight")
        self.x = self.value((BATCH, 1), requires_grad=True, trained=True)
        h = self.run(self.x, "body")
        for name in activations or ("relu",):
            h = self.operation(name, h, line=3, text=LINE, out=dict(LIVE))
        self.u = self.run(h, "out", shape=(BATCH, 1))
        by = self.x if of == "input" else next(v.index for v in self.graph.values if v.name == "body.weight")
        self.first = self.operation("grad", self.u, by, shape=(BATCH, 1), line=7, out=dict(LIVE), create_graph=True)
        summed = self.operation("sum", self.first, shape=(), out=dict(LIVE))
        self.second = self.operation(
            "grad", summed, by, shape=(BATCH, 1), line=8, out=second or dict(ZERO), create_graph=True
        )

    def residual(self) -> Equation:
        """It is added to a source, sample by sample."""
        source = self.value((BATCH, 1), low=-3.0, high=4.0)
        return self.ends(
            self.operation("add", self.operation("mul", self.second, out=dict(ZERO)), source, out=dict(LIVE))
        )

    def penalty(self) -> Equation:
        """Its mean square is added to the loss."""
        mean = self.operation("mean", self.operation("pow", self.second, out=dict(ZERO)), shape=(), out=dict(ZERO))
        other = self.operation("mean", self.u, shape=(), out=dict(LIVE))
        self.backward(self.operation("add", other, mean, shape=(), out=dict(LIVE)))
        return self

    def ends(self, value: int) -> Equation:
        self.backward(self.operation("mean", self.operation("pow", value, out=dict(LIVE)), shape=(), out=dict(LIVE)))
        return self

    def falling(self) -> Equation:
        self.loss(lambda step: 0.9**step)
        return self

    def tried(self, zeros: float = 1.0, smooth: float = 0.5) -> Equation:
        self.arm(CURVATURE, zeros=zeros, smooth=smooth)
        return self


def test_a_residual_names_the_activation_s_line():
    (found,) = judged(ZeroSecondDerivative(), Equation().residual().falling().tried())
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.PROVEN)
    assert (found.location.line, found.location.operation) == (3, "relu")
    assert "line 8" in found.explanation
    assert found.fixes[0].code == "h = torch.tanh(self.body(x))"


def test_a_penalty_that_does_nothing_is_a_warning_where_training_works():
    (found,) = judged(ZeroSecondDerivative(), Equation().penalty().falling().tried())
    assert found.severity is Severity.WARNING


def test_a_penalty_beside_a_loss_that_does_not_fall_is_an_error():
    build = Equation().penalty().tried()
    build.loss(1.0)
    (found,) = judged(ZeroSecondDerivative(), build)
    assert found.severity is Severity.ERROR


@pytest.mark.parametrize(("zeros", "smooth"), [(0.0, 0.5), (1.0, 0.0)])
def test_what_the_copy_does_not_show_is_no_finding(zeros, smooth):
    """Not 0 in later batches, or 0 with a smooth function as well."""
    assert judged(ZeroSecondDerivative(), Equation().residual().tried(zeros, smooth)) == []


def test_without_a_copy_the_operations_tell():
    (found,) = judged(ZeroSecondDerivative(), Equation("relu", "leaky_relu").residual())
    assert found.certainty is Certainty.MEASURED
    assert judged(ZeroSecondDerivative(), Equation("relu", "tanh").residual()) == []
    failed = Equation().residual()
    failed.arm(CURVATURE, failure="no copy")
    assert len(judged(ZeroSecondDerivative(), failed)) == 1


def test_with_a_copy_a_curved_function_beside_is_no_excuse():
    assert len(judged(ZeroSecondDerivative(), Equation("relu", "tanh").residual().tried())) == 1


def first_alone(build: Equation) -> Equation:
    return build.ends(build.first)


def not_in_the_loss(build: Equation) -> Equation:
    return build.ends(build.u)


@pytest.mark.parametrize("use", [first_alone, not_in_the_loss])
def test_what_is_no_term_of_the_loss(use):
    assert judged(ZeroSecondDerivative(), use(Equation()).tried()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"second": {**ZERO, "high": 1e-30}},
        {"second": {**ZERO, "finite": False}},
        {"of": "weight"},
    ],
)
def test_what_is_not_zero_or_of_weights(options):
    assert judged(ZeroSecondDerivative(), Equation(**options).residual().tried()) == []


def test_smooth_activations():
    assert judged(ZeroSecondDerivative(), Equation("tanh").residual().tried()) == []


def test_few_numbers_may_be_zero_by_chance():
    build = Equation()
    few = replace(build.graph.values[build.second], shape=(7, 1))
    build.graph.values[build.second] = few
    assert judged(ZeroSecondDerivative(), build.residual().tried()) == []
    build.graph.values[build.second] = replace(few, shape=(8, 1))
    assert len(judged(ZeroSecondDerivative(), build.tried())) == 1


@pytest.mark.parametrize(
    ("text", "type_", "code"),
    [
        ("nn.Linear(2, 8), nn.ReLU(inplace=True),", "ReLU", "nn.Linear(2, 8), nn.SiLU(),"),
        ("model = PINN(layers, nn.LeakyReLU)", "LeakyReLU", "model = PINN(layers, nn.SiLU)"),
        ("return torch.relu(x @ w)", "", "return torch.nn.functional.silu(x @ w)"),
        ("h = self.a(x).relu()", "", "h = torch.nn.functional.silu(self.a(x))"),
        ("mods.append(act())", "ReLU", "nn.SiLU()  # in place of nn.ReLU()"),
        ("", "", "torch.nn.functional.silu(x)  # in place of relu"),
    ],
)
def test_the_line_with_a_smooth_function(text, type_, code):
    assert smoothed(text, Operation(0, "relu", "", type_, (), ()), "silu", "SiLU") == code
