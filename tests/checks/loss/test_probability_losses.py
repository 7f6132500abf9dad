from __future__ import annotations

import pytest

from netdoctor.checks.loss.logits_into_probability_loss import LogitsIntoProbabilityLoss
from netdoctor.checks.loss.probabilities_into_logit_loss import ProbabilitiesIntoLogitLoss
from netdoctor.finding import Severity
from tests.checks.loss.steps import BATCH, CLASSES, Step, judged

WITH_LOGITS = "binary_cross_entropy_with_logits"


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "hardsigmoid"])
def test_probabilities_into_a_loss_with_logits(name):
    step = Step()
    made = step.then(name, step.scores(), text=f"out = torch.{name}(z)")
    (found,) = judged(ProbabilitiesIntoLogitLoss(), step.loss_of(WITH_LOGITS, made, step.numbers((BATCH, CLASSES), 0)))
    assert found.severity is Severity.ERROR
    assert found.fixes[0].code == "out = z"


def test_the_other_loss_is_offered_as_well():
    step = Step()
    made = step.then("sigmoid", step.scores())
    text = "loss = F.binary_cross_entropy_with_logits(out, y)"
    (found,) = judged(ProbabilitiesIntoLogitLoss(), step.loss_of(WITH_LOGITS, made, step.numbers((BATCH,), 0), text))
    assert found.fixes[1].code == "loss = F.binary_cross_entropy(out, y)"


@pytest.mark.parametrize(("name", "loss"), [("sigmoid", "binary_cross_entropy"), ("mul", WITH_LOGITS)])
def test_probabilities_where_they_belong(name, loss):
    step = Step()
    step.loss_of(loss, step.then(name, step.scores()), step.numbers((BATCH, CLASSES), 0))
    assert judged(ProbabilitiesIntoLogitLoss(), step) == []
    assert judged(LogitsIntoProbabilityLoss(), step) == []


@pytest.mark.parametrize(("high", "fires"), [(2.5, True), (2e-4, True), (1e-4, False), (-0.1, False)])
def test_log_probabilities_are_never_above_zero(high, fires):
    step = Step()
    step.loss_of("nll_loss", step.scores(high=high), step.labels(), "loss = F.nll_loss(net(x), y)")
    found = judged(LogitsIntoProbabilityLoss(), step)
    assert [f.fixes[0].code for f in found] == (["loss = F.cross_entropy(net(x), y)"] if fires else [])


@pytest.mark.parametrize("loss", ["nll_loss", "kl_div"])
def test_probabilities_without_their_logarithm(loss):
    step = Step()
    step.loss_of(loss, step.then("softmax", step.scores(), dim=1), step.labels())
    (found,) = judged(LogitsIntoProbabilityLoss(), step)
    assert "probabilities" in found.title
    assert found.fixes[0].treatment == "log-softmax"


@pytest.mark.parametrize(("between", "fires"), [("clamp", True), ("relu", True), ("sigmoid", False)])
def test_scores_that_are_cut_off_are_no_probabilities(between, fires):
    step = Step()
    step.loss_of("binary_cross_entropy", step.then(between, step.scores()), step.numbers((BATCH, CLASSES), 0))
    assert bool(judged(LogitsIntoProbabilityLoss(), step)) is fires


def test_a_clamped_sigmoid_is_a_probability():
    step = Step()
    kept = step.then("clamp", step.then("sigmoid", step.scores()), low=1e-6, high=1 - 1e-6)
    assert (
        judged(LogitsIntoProbabilityLoss(), step.loss_of("binary_cross_entropy", kept, step.numbers((BATCH,), 0))) == []
    )
