from __future__ import annotations

import pytest

from netdoctor.checks.numerics.half_precision_overflow import HalfPrecisionOverflow
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Operand
from tests.checks.builders import Builder


def judged(build: Builder) -> list[Finding]:
    return list(HalfPrecisionOverflow().judge(build.done()))


def overflow(
    high: float = 300.0, operation: str = "mul", dtype: str = "float16", phase: str = "forward", **operand: int
) -> Builder:
    inputs = (Operand("x", (4,), dtype, 0.0, high, **operand),)
    made = Operand("out", (4,), dtype, 0.0, 6e4, infs=1)
    return Builder().origin(phase, "Inf", 3, "y = x * x", operation=operation, inputs=inputs, output=made)


def test_it_names_the_operation_its_line_and_the_step() -> None:
    (finding,) = judged(overflow())
    assert (finding.severity, finding.location.line, finding.first_step) == (Severity.ERROR, 12, 3)
    assert "65504" in finding.explanation


@pytest.mark.parametrize(
    ("operation", "high", "fires"),
    [("mul", 0.9e15, True), ("mul", 1.1e15, False), ("exp", 87.0, True), ("exp", 89.0, False), ("div", 1.0, False)],
)
def test_float32_must_have_room(operation: str, high: float, fires: bool) -> None:
    assert bool(judged(overflow(high, operation))) is fires


def test_silent_for_float32_for_what_came_broken_and_for_the_backward_pass() -> None:
    assert judged(overflow(dtype="float32")) == []
    assert judged(overflow(infs=1)) == []
    assert judged(overflow(phase="backward")) == []


def graph(high: float, before: float = 10.0, operation: str = "linear", dtype: str = "float16") -> Builder:
    build = Builder()
    x = build.value((8, 16), dtype, low=-before, high=before)
    made = build.operation(operation, x, out={"low": -high, "high": 1.0, "trained": True}, line=7)
    return build.backward(build.operation("mean", made, shape=(), dtype="float32", out={"low": 0.0, "high": 1.0}))


@pytest.mark.parametrize(("high", "fires"), [(8187.0, False), (8189.0, True)])
def test_an_eighth_of_the_largest(high: float, fires: bool) -> None:
    found = judged(graph(high))
    assert bool(found) is fires
    assert all((f.severity, f.location.line) == (Severity.WARNING, 7) for f in found)


def test_silent_for_masks_other_operations_and_bfloat16() -> None:
    assert judged(graph(65504.0, before=65504.0, operation="add")) == []
    assert judged(graph(65504.0, operation="masked_fill")) == []
    assert judged(graph(65504.0, dtype="bfloat16")) == []
    assert judged(graph(float("nan"))) == []
