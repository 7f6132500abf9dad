from __future__ import annotations

import pytest

from netdoctor.checks.loss.double_softmax import DoubleSoftmax
from netdoctor.finding import Severity
from tests.checks.loss.steps import BATCH, CLASSES, Step, judged


@pytest.mark.parametrize("name", ["softmax", "gumbel_softmax", "softmin"])
def test_softmax_before_cross_entropy_is_an_error(name):
    step = Step()
    probabilities = step.then(name, step.scores(), text=f"p = torch.{name}(scores, dim=1)", dim=1)
    (found,) = judged(DoubleSoftmax(), step.loss_of("cross_entropy", probabilities, step.labels()))
    assert found.severity is Severity.ERROR
    assert found.location.line == 7
    assert found.fixes[0].code == "p = scores"


def test_reshapes_in_between_do_not_hide_it():
    step = Step()
    flat = step.operation("view", step.then("softmax", step.scores(), dim=1), shape=(BATCH, CLASSES))
    assert len(judged(DoubleSoftmax(), step.loss_of("cross_entropy", flat, step.labels()))) == 1


def test_a_module_is_replaced_in_the_line_that_builds_it():
    step = Step()
    step.layer("act", "Softmax", line=3, text="nn.Softmax(dim=1),")
    made = step.then("softmax", step.scores(), module="act", module_type="Softmax", dim=1)
    (found,) = judged(DoubleSoftmax(), step.loss_of("cross_entropy", made, step.labels()))
    assert (found.location.line, found.fixes[0].code) == (3, "nn.Identity(),")


def test_log_softmax_changes_nothing_and_is_advice():
    step = Step()
    made = step.then("log_softmax", step.scores(), low=-5.0, high=0.0, dim=1)
    (found,) = judged(DoubleSoftmax(), step.loss_of("cross_entropy", made, step.labels()))
    assert found.severity is Severity.ADVICE


def test_it_stays_silent():
    logits, soft_target, attention, nll = Step(), Step(), Step(), Step()
    logits.loss_of("cross_entropy", logits.scores(), logits.labels())
    teacher = soft_target.operation("softmax", soft_target.numbers((BATCH, CLASSES)), dim=1)
    soft_target.loss_of("cross_entropy", soft_target.scores(), teacher)
    weights = attention.then("softmax", attention.scores(), dim=-1)
    attention.loss_of("cross_entropy", attention.operation("matmul", weights, attention.x), attention.labels())
    nll.loss_of("nll_loss", nll.then("log_softmax", nll.scores(), low=-3.0, high=0.0), nll.labels())
    for step in (logits, soft_target, attention, nll):
        assert judged(DoubleSoftmax(), step) == []
