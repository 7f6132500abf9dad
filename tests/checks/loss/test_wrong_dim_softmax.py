from __future__ import annotations

import pytest

from netdoctor.checks.loss.wrong_dim_softmax import WrongDimSoftmax
from tests.checks.loss.steps import BATCH, Step, judged


def step_with(shape=(BATCH, 10), loss="nll_loss", name="log_softmax", text="", **dim):
    step = Step()
    made = step.then(name, step.scores(shape), low=-4.0, high=0.0, text=text, **dim)
    return step.loss_of(loss, made, step.labels(shape[:1]))


@pytest.mark.parametrize(
    ("dim", "text", "code"),
    [
        ({"dim": 0}, "return F.log_softmax(x, dim=0)", "return F.log_softmax(x, dim=-1)"),
        ({"1": 0}, "return torch.log_softmax(x, 0)", "return torch.log_softmax(x, -1)"),
        ({"dim": -2}, "return f(x)", "softmax(scores, dim=-1)"),
    ],
)
def test_over_the_batch(dim, text, code):
    (found,) = judged(WrongDimSoftmax(), step_with(text=text, **dim))
    assert "the batch" in found.title
    assert found.fixes[0].code == code


def test_without_dim_three_dimensions_go_over_the_batch():
    assert len(judged(WrongDimSoftmax(), step_with((BATCH, 5, 7)))) == 1
    assert judged(WrongDimSoftmax(), step_with((BATCH, 5))) == []


@pytest.mark.parametrize(
    "step",
    [
        step_with(dim=1),
        step_with((BATCH,), dim=0),  # nothing but samples
        step_with((BATCH, BATCH), dim=0),  # every sample against every other, as in contrastive losses
        step_with((BATCH, 1), dim=0),  # weights of samples
        step_with((12, 10), dim=0),  # time, or members of a set
        step_with(loss="cross_entropy", name="softmax", dim=0),  # double-softmax speaks
    ],
)
def test_it_stays_silent(step):
    assert judged(WrongDimSoftmax(), step) == []


def test_attention_over_the_first_dimension():
    step = Step()
    weights = step.then("softmax", step.scores(), dim=0)
    step.loss_of("cross_entropy", step.operation("matmul", weights, step.x, shape=(BATCH, 16)), step.labels())
    assert judged(WrongDimSoftmax(), step) == []


@pytest.mark.parametrize(
    ("dim", "classes", "name", "mixed", "fires"),
    [
        (1, 5, "nll_loss", "", True),
        (2, 5, "nll_loss", "", False),
        (-1, 5, "nll_loss", "", False),
        (1, 1, "nll_loss", "", False),
        (1, 5, "nll_loss", "linear", False),  # attention over positions
        (1, 5, "mse_loss", "", False),
    ],
)
def test_beside_the_classes_of_a_sequence(dim, classes, name, mixed, fires):
    """(positions, samples, classes), of which nll_loss gets (positions and samples, classes)."""
    step = Step()
    shape = (24, BATCH, classes)
    text = "return torch.softmax(self.out(h), dim=1)"
    made = step.then("softmax", step.scores(shape), low=0.0, high=1.0, dim=dim, text=text)
    if mixed:
        made = step.then(mixed, made)
    made = step.then("log", step.then("add", made))
    made = step.operation("flatten", made, shape=(24 * BATCH, classes))
    step.loss_of(name, made, step.labels((24 * BATCH,)))
    found = judged(WrongDimSoftmax(), step)
    assert len(found) == fires
    for one in found:
        assert "the classes are in dimension 2" in one.title
        assert one.fixes[0].code == "return torch.softmax(self.out(h), dim=-1)"
