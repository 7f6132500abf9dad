from __future__ import annotations

from typing import Any

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


def policy(
    step: Step, scores: int, text: str = "return Categorical(logits=out)", entropy: bool = False, form: str = ""
) -> Step:
    """Log-probabilities of what is given as scores, of the actions taken, times their advantages; or their entropy."""
    logarithms = normalised(step, scores, text, form)
    weights = step.operation("softmax", logarithms, dim=-1) if entropy else step.numbers((BATCH, 1))
    taken = logarithms if entropy else step.operation("gather", logarithms, step.labels((BATCH, 1)), shape=(BATCH, 1))
    step.backward(step.operation("mean", step.operation("mul", taken, weights), shape=()))
    return step


def normalised(step: Step, scores: int, text: str, form: str) -> int:
    if form == "log_softmax":
        return step.operation("log_softmax", scores, dim=-1, line=8, text=text)
    summed = step.operation("logsumexp", scores, shape=(BATCH, 1), line=8, text=text, dim=-1, keepdim=True)
    return step.operation("sub", scores, summed, line=8, text=text)


def squashed(step: Step, **options: Any) -> int:
    return step.then("softmax", step.scores(), text="p = torch.softmax(scores, -1)", **{"dim": -1} | options)


@pytest.mark.parametrize("text", ["return Categorical(logits=out)", "d = OneHotCategorical(None, logits = out)"])
def test_a_distribution_is_told_what_it_is_given(text):
    step = Step()
    (found,) = judged(DoubleSoftmax(), policy(step, squashed(step), text))
    assert found.severity is Severity.ERROR
    assert found.location.line == 8
    assert found.fixes[0].code in (text.replace("logits=", "probs="), text.replace("logits =", "probs="))
    assert "Categorical(logits=...)" in found.title


def test_a_loss_by_hand_that_subtracts_the_score_of_the_label():
    step = Step()
    scores = squashed(step)
    summed = step.operation("logsumexp", scores, shape=(BATCH,), dim=1)
    taken = step.operation("getitem", scores, shape=(BATCH,))
    step.backward(step.operation("mean", step.operation("sub", summed, taken), shape=()))
    assert len(judged(DoubleSoftmax(), step)) == 1


@pytest.mark.parametrize(
    ("text", "form"), [("logp = out - out.logsumexp(-1, keepdim=True)", ""), ("F.log_softmax(p, -1)", "log_softmax")]
)
def test_a_log_softmax_by_hand_is_given_raw_scores(text, form):
    step = Step()
    (found,) = judged(DoubleSoftmax(), policy(step, squashed(step), text, form=form))
    assert (found.location.line, found.fixes[0].code) == (7, "p = scores")


def test_a_policy_that_is_asked_many_times_is_named_once():
    step = Step()
    for _ in range(3):
        policy(step, squashed(step))
    assert len(judged(DoubleSoftmax(), step)) == 1


@pytest.mark.parametrize(("scale", "fires"), [(1.0, True), (2.9, True), (3.1, False), (14.3, False)])
@pytest.mark.parametrize("learned", [True, False])
def test_a_learned_temperature_that_stays_mild_does_not_help(scale, fires, learned):
    step = Step()
    factor = step.value((), low=scale, high=scale, requires_grad=learned)
    scores = step.operation("mul", squashed(step), factor, shape=(BATCH, CLASSES))
    assert bool(judged(DoubleSoftmax(), policy(step, scores))) is (fires and learned)


def test_what_is_normalised_in_another_way_is_right():
    raw, log, entropy, columns, mixed, teacher, gumbel = (Step() for _ in range(7))
    policy(raw, raw.scores())
    policy(log, log.operation("log", squashed(log)))
    policy(entropy, squashed(entropy), entropy=True)
    policy(columns, squashed(columns, dim=0))
    policy(mixed, mixed.operation("matmul", squashed(mixed), mixed.numbers((CLASSES, CLASSES))))
    policy(teacher, teacher.operation("softmax", teacher.numbers((BATCH, CLASSES)), dim=-1))
    policy(gumbel, gumbel.then("gumbel_softmax", gumbel.scores(), dim=-1))
    for step in (raw, log, entropy, columns, mixed, teacher, gumbel):
        assert judged(DoubleSoftmax(), step) == []
