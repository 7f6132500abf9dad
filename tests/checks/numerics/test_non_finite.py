"""The four checks on non-finite values: exactly one of them speaks, about the operation, and never without harm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.check import Check
from netdoctor.checks.numerics.nan_input import NanInput
from netdoctor.checks.numerics.non_finite_activation import NonFiniteActivation
from netdoctor.checks.numerics.non_finite_gradient import NonFiniteGradient
from netdoctor.checks.numerics.non_finite_parameter import NonFiniteParameter
from netdoctor.finding import Certainty, Finding, Severity
from netdoctor.recording import Operand, Recording, Role, Stat
from tests.checks.builders import Builder

CHECKS: tuple[Check, ...] = (NanInput(), NonFiniteActivation(), NonFiniteGradient(), NonFiniteParameter())


def findings(recording: Recording) -> list[Finding]:
    found = [finding for check in CHECKS for finding in check.judge(recording)]
    assert all(isinstance(finding, Finding) for finding in found)
    return [finding for finding in found if isinstance(finding, Finding)]


def only(recording: Recording) -> Finding:
    (finding,) = findings(recording)
    return finding


def broken(step: int) -> Builder:
    """A run whose loss is NaN from a step on."""
    return Builder(40).loss(lambda s: math.nan if s >= step else 1.0)


P = Operand("p", (64, 17), "float32", 0.0, 3.2e3, zeros=544)


def test_healthy_run_is_silent() -> None:
    assert findings(Builder(40).loss(lambda s: 0.9**s).scalar("gradient norm", 1.0).done()) == []


def test_forward_origin_names_operation_line_samples_and_fix() -> None:
    origin = {"operation": "log", "module": "spectrum", "call": 1, "inputs": (P,), "samples": (3, 17)}
    made = Operand("", (64, 17), "float32", 0.0, 8.0, infs=544)
    text = "return torch.log(power).transpose(1, 2)"
    finding = only(broken(7).origin("forward", "Inf", 7, text, 31, output=made, **origin).done())
    assert finding.check == "non-finite-activation"
    assert finding.severity is Severity.ERROR
    assert finding.certainty is Certainty.MEASURED
    assert finding.first_step == 7
    where = finding.location
    assert (where.module, where.operation, where.file, where.line, where.step) == ("spectrum", "log", "train.py", 31, 7)
    assert where.samples == (3, 17)
    assert finding.fixes[0].code == "return torch.log(power.clamp_min(1e-8)).transpose(1, 2)"
    for part in ("544", "log(0)", "3, 17", "64×17", "3.2e+03"):
        assert part in finding.explanation
    assert "(call 2)" in finding.title
    assert [e.measured for e in finding.evidence] == [544.0, 544.0]


def test_backward_origin_is_a_gradient() -> None:
    inputs = (Operand("", (96,), "float32", 0.0, 4.0, zeros=2),)
    finding = only(
        broken(5).origin("backward", "NaN", 4, "d = torch.sqrt(s)", operation="SqrtBackward0", inputs=inputs).done()
    )
    assert finding.check == "non-finite-gradient"
    assert finding.location.operation == "sqrt"
    assert finding.fixes[0].code == "d = torch.sqrt(s.clamp_min(1e-12))"
    assert "forward pass is finite" in finding.explanation


def test_nan_in_the_batch_names_columns_and_samples() -> None:
    inputs = (Operand("x", (34, 10), "float32", -3.0, 3.0, nans=4),)
    finding = only(broken(0).origin("input", "NaN", 0, inputs=inputs, columns=(2, 8), samples=(5,)).done())
    assert finding.check == "nan-input"
    assert "2, 8" in finding.explanation
    assert finding.location.samples == (5,)
    assert finding.evidence[0].measured == 4.0
    assert "x[finite]" in finding.fixes[0].code
    assert {"non-finite-activation", "non-finite-gradient", "non-finite-parameter"} <= NanInput.explains


def test_target_of_one_dimension_gets_code_that_runs() -> None:
    inputs = (Operand("y", (34,), "float32", -3.0, 3.0, nans=1),)
    code = only(broken(0).origin("input", "NaN", 0, inputs=inputs).done()).fixes[0].code
    assert ".flatten(1)" not in code


def test_masks_of_minus_infinity_without_harm_are_silent() -> None:
    """Capture makes no origin when loss and gradients are finite; statistics alone must not either."""
    build = Builder(40).activation("mask", "Identity", stats={Stat.NONFINITE: 1.0}).loss(1.0)
    assert findings(build.scalar("gradient norm", 1.0).done()) == []


@pytest.mark.parametrize(("skips", "fires"), [(1, False), (20, False), (21, True)])
def test_steps_that_a_loss_scaler_skips(skips: int, fires: bool) -> None:
    build = Builder(40).loss(1.0).count("scaler-skip", skips)
    assert bool(findings(build.origin("backward", "Inf", 0, operation="mul").done())) is fires


def test_loss_scaler_does_not_excuse_a_broken_loss() -> None:
    assert only(broken(3).count("scaler-skip", 2).origin("backward", "NaN", 2, operation="sqrt").done())


def test_training_that_went_on_is_a_warning() -> None:
    build = Builder(40).loss(lambda s: math.nan if s == 5 else 1.0)
    assert only(build.origin("forward", "NaN", 5, operation="log").done()).severity is Severity.WARNING


@pytest.mark.parametrize(("end", "inferred"), [(0.9 * 120, False), (1.1 * 120, True)])
def test_two_decades_of_growth_before_read_as_divergence(end: float, inferred: bool) -> None:
    """At a hundredfold growth of an upstream layer the finding becomes a symptom, and says from where to where."""
    build = broken(10).linear("fc2", rms=lambda s: 1.2 * (end / 1.2) ** (min(s, 9) / 9))
    inputs = (Operand("x", (8, 4), "float32", 0.0, 95.0),)
    finding = only(build.optimizer("SGD", lr=3.0).origin("forward", "Inf", 10, operation="exp", inputs=inputs).done())
    assert (finding.certainty is Certainty.INFERRED) is inferred
    assert ("the scale of fc2 grew from 1.2 to" in finding.explanation) is inferred
    assert ("learning rate was 3" in finding.explanation) is inferred


def test_layers_that_start_at_zero_are_no_divergence() -> None:
    build = broken(10).linear("head", rms=lambda s: 1e-4 + 0.1 * s)
    finding = only(build.origin("forward", "Inf", 10, operation="log", inputs=(P,)).done())
    assert finding.certainty is Certainty.MEASURED


def test_growth_downstream_of_the_operation_is_not_its_cause() -> None:
    build = broken(10).linear("a", rms=1.0).layer("norm", "Scale").linear("b", rms=lambda s: 10.0 ** min(s, 9))
    finding = only(build.origin("forward", "Inf", 10, operation="div", module="norm", inputs=(P, P)).done())
    assert finding.certainty is Certainty.MEASURED


@pytest.mark.parametrize(("magnitude", "certainty"), [(1e10, Certainty.MEASURED), (1e20, Certainty.INFERRED)])
def test_overflow_of_huge_inputs_in_an_ordinary_operation_is_a_symptom(magnitude: float, certainty: Certainty) -> None:
    inputs = (Operand("x", (8, 4), "float32", -magnitude, magnitude),)
    finding = only(broken(1).origin("forward", "NaN", 1, operation="linear", module="fc", inputs=inputs).done())
    assert finding.certainty is certainty
    assert finding.severity is Severity.ERROR


def test_growth_through_depth_is_told() -> None:
    build = broken(0)
    for i in range(4):
        build.linear(f"layers.{i}", rms=10.0 ** (8 * i))
    inputs = (Operand("x", (8, 4), "float32", -1e24, 1e24),)
    finding = only(build.origin("forward", "Inf", 0, operation="linear", module="layers.3", inputs=inputs).done())
    assert "(layers.0) to 1e+24 (layers.3)" in finding.explanation


def test_without_origin_the_statistics_speak() -> None:
    build = (
        broken(4).linear("a", stats={Stat.NONFINITE: 0.0}).linear("b", stats={Stat.NONFINITE: lambda s: float(s >= 4)})
    )
    finding = only(build.linear("c", stats={Stat.NONFINITE: lambda s: float(s >= 4)}).done())
    assert (finding.check, finding.location.module) == ("non-finite-activation", "b")
    assert finding.certainty is Certainty.INFERRED
    assert "could not be replayed" in finding.explanation


def test_without_origin_a_gradient_that_breaks_first_is_a_gradient() -> None:
    build = broken(4).scalar("gradient norm", lambda s: math.nan if s >= 3 else 1.0).linear("a").linear("b")
    for name in ("a.weight", "b.weight"):
        build.of_parameter(name, Stat.NONFINITE, lambda s: float(s >= 3), Role.WEIGHT_GRADIENT)
    finding = only(build.done())
    assert (finding.check, finding.location.module) == ("non-finite-gradient", "b")


def test_adam_without_eps() -> None:
    build = broken(1).parameter("embedding.weight", (400, 32), module_type="Embedding")
    build.optimizer("Adam", lr=3e-3, eps=0.0)
    finding = only(build.origin("optimizer", "NaN", 0, parameter="embedding.weight").done())
    assert (finding.check, finding.location.module) == ("non-finite-parameter", "embedding")
    assert finding.certainty is Certainty.MEASURED
    assert "0/0" in finding.explanation
    assert "eps=1e-8" in finding.fixes[0].code


@pytest.mark.parametrize(
    ("dtype", "eps", "blamed"), [("float16", 1e-8, True), ("float16", 1e-4, False), ("float32", 1e-8, False)]
)
def test_eps_that_rounds_to_zero_in_half_precision(dtype: str, eps: float, blamed: bool) -> None:
    build = broken(1).parameter("w", dtype=dtype).optimizer("Adam", lr=1e-3, eps=eps)
    finding = only(build.origin("optimizer", "NaN", 0, parameter="w").done())
    assert ("eps" in finding.title) is blamed


def test_learning_rate_that_is_nan() -> None:
    build = broken(5).parameter("w").optimizer("SGD", lr=0.1).scalar("lr", lambda s: math.nan if s >= 4 else 0.1)
    assert "learning rate is not finite" in only(build.origin("optimizer", "NaN", 4, parameter="w").done()).title


def test_step_that_is_far_too_large() -> None:
    build = broken(5).parameter("w", rms=1.0, update=30.0).optimizer("SGD", lr=100.0)
    finding = only(build.origin("optimizer", "Inf", 4, parameter="w").done())
    assert finding.evidence[0].measured == pytest.approx(30.0)
    assert "10" in finding.fixes[0].says


@pytest.mark.parametrize(
    ("pretrained", "step", "word"), [(True, 0, "checkpoint"), (False, 0, "initialisation"), (True, 9, "overwritten")]
)
def test_weight_that_was_non_finite_before(pretrained: bool, step: int, word: str) -> None:
    build = broken(step).parameter("fc.weight").facts(pretrained=pretrained)
    finding = only(build.origin("parameter", "NaN", step, parameter="fc.weight").done())
    assert finding.check == "non-finite-parameter"
    assert word in finding.explanation


def test_findings_survive_numbers_that_are_not_there() -> None:
    nothing = Operand("", (), "", math.nan, math.nan)
    for phase in ("input", "parameter", "forward", "backward", "optimizer"):
        assert only(Builder(3).origin(phase, inputs=(nothing,), operation="log").done()).title
    assert np.isnan(nothing.low)
