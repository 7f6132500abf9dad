from __future__ import annotations

import math

import pytest

from netdoctor.checks.loss.comparisons import comparisons
from netdoctor.checks.loss.logit_scale import USUAL, LogitScale, wanted
from netdoctor.checks.loss.logit_scale_too_large import LogitScaleTooLarge
from netdoctor.finding import Finding, Severity
from tests.checks.builders import Builder, Curve
from tests.checks.loss.steps import Step

N, CHANCE = 32, math.log(32)
BORN = "self.logit_scale = nn.Parameter(torch.tensor(1 / temperature))"


def scored(
    factor: float = 1e4,
    first: float = 1000.0,
    later: float = 50.0,
    steps: int = 100,
    fall: int | None = None,
    learned: bool = False,
    over: bool = False,
    reduction: str = "mean",
    own: float | None = None,
) -> Builder:
    """Products of two sets of vectors, times a factor, into a cross-entropy; the loss falls from `first` to `later` or, from step
    `fall` on, to half of that of a guess."""
    curve: Curve = lambda at: 0.5 * CHANCE if fall is not None and at >= fall else first if at == 0 else later  # noqa: E731
    build = Builder(steps=steps).loss(curve)
    if learned:
        build.operation("tensor", shape=(), line=5, text=BORN)
    a, b = (build.operation("normalize", build.value((N, 8), trained=True)) for _ in range(2))
    scores = build.operation("matmul", a, b, shape=(N, N))
    if learned:
        held = build.value((), origin="parameter", name="logit_scale", requires_grad=True, trained=True, mean=14.2857)
        number = build.operation("exp", held, out={"mean": factor})
        logits = build.operation("mul", number, scores, shape=(N, N), line=9)
    elif over:
        logits = build.operation("div", scores, line=9, **{"1": 1 / factor})
    else:
        logits = build.operation("mul", scores, line=9, **{"1": factor})
    loss = {"mean": first if own is None else own}
    target = build.value((N,), "int64")
    return build.backward(build.operation("cross_entropy", logits, target, shape=(), reduction=reduction, out=loss))


def judged(build: Builder) -> list[Finding]:
    return list(LogitScaleTooLarge().judge(build.done()))


@pytest.mark.parametrize("over", [True, False])
def test_a_huge_factor(over):
    (found,) = judged(scored(over=over))
    assert (found.severity, found.location.line) == (Severity.ERROR, 9)
    assert found.evidence[0].measured == pytest.approx(1e4)


def test_a_learned_factor_that_is_exponentiated():
    (found,) = judged(scored(1.6e6, learned=True))
    assert (found.location.line, found.location.step) == (5, 0)
    assert found.fixes[0].code == "self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))"
    assert "exponential of logit_scale" in found.explanation


@pytest.mark.parametrize(
    ("build", "severity"),
    [
        (scored(fall=10), None),
        (scored(fall=11), Severity.WARNING),
        (scored(), Severity.ERROR),
        (scored(steps=30), Severity.ERROR),
        (scored(steps=29), None),
        (scored(factor=100.0), None),
        (scored(factor=101.0), Severity.ERROR),
        (scored(first=9.9 * CHANCE), None),
        (scored(first=10.1 * CHANCE), Severity.ERROR),
        (scored(own=251.0), Severity.ERROR),
        (scored(own=249.0), None),
        (scored(reduction="sum"), None),
        (scored().facts(pretrained=True), None),
    ],
)
def test_limits(build, severity):
    assert [found.severity for found in judged(build)] == ([] if severity is None else [severity])


def test_weights_of_classes_are_another_loss():
    build = scored()
    operation = build.graph.operations[-1]
    object.__setattr__(operation, "inputs", (*operation.inputs, build.value((N,))))
    assert judged(build) == []


def test_a_factor_of_what_a_layer_reads_is_no_scale_of_the_logits():
    build = Builder(steps=100).loss(1000.0)
    x = build.operation("mul", build.value((N, 8)), **{"1": 1e4})
    logits = build.operation("linear", x, build.weight("head.weight", (10, 8)), shape=(N, 10))
    build.backward(build.operation("cross_entropy", logits, build.value((N,), "int64"), shape=(), out={"mean": 1000.0}))
    assert judged(build) == []


@pytest.mark.parametrize(
    ("exponentiated", "value", "begins"),
    [(True, 1.0, USUAL), (True, 1.01, 1.01), (True, 100.0, 100.0), (True, 100.1, USUAL), (False, 50.0, USUAL)],
)
def test_the_factor_that_fix_and_trial_begin_with(exponentiated, value, begins):
    """What was to be the scale, and was exponentiated, if it is a usual one; the trial multiplies by the same."""
    step = Step()
    pair = next(comparisons(step.loss_of("cross_entropy", step.scores(), step.labels()).done()))
    found = LogitScale(pair, pair.operation, 1e6, "scale", exponentiated, value)
    assert wanted(found) == begins
