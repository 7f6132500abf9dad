"""label-range, wrong-loss and loss-sum-reduction: what the targets are, and how losses are added up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.loss.label_range import LabelRange
from netdoctor.checks.loss.loss_sum_reduction import LossSumReduction
from netdoctor.checks.loss.softmax_then_log import SoftmaxThenLog
from netdoctor.checks.loss.wrong_loss import WrongLoss
from netdoctor.finding import Severity, Verdict
from tests.checks.builders import Builder
from tests.checks.loss.steps import BATCH, CLASSES, Step, judged

FALLING = [2.3 * 0.9**at for at in range(40)]
STUCK = [2.3] * 40


@pytest.mark.parametrize(
    ("low", "high", "fires"),
    [(0, 1, False), (-5e-4, 1.0005, False), (0, 1.002, True), (-0.002, 1, True), (-1, 1, True), (0, 255, True)],
)
def test_binary_targets_are_probabilities(low, high, fires):
    step = Step()
    target = step.numbers((BATCH, CLASSES), low, high, integral=high - low >= 2)
    step.loss_of("binary_cross_entropy_with_logits", step.scores(), target)
    assert bool(judged(LabelRange(), step)) is fires


def test_plus_and_minus_one_are_mapped():
    step = Step()
    step.loss_of("binary_cross_entropy", step.scores(), step.numbers((BATCH, CLASSES), -1, 1, integral=True))
    assert judged(LabelRange(), step)[0].fixes[0].code == "target = (target + 1) / 2"


def test_other_losses_take_any_target():
    step = Step()
    assert judged(LabelRange(), step.loss_of("mse_loss", step.scores(), step.numbers((BATCH, CLASSES), -9, 9))) == []


@pytest.mark.parametrize(("per_sample", "fires"), [(1.0, False), (1.02, False), (1.03, True), (3.0, True)])
def test_several_labels_per_sample(per_sample, fires):
    step = Step()
    target = step.numbers((BATCH, CLASSES), 0, 1, mean=per_sample / CLASSES, integral=True)
    step.loss_of("cross_entropy", step.scores(), target, "loss = F.cross_entropy(z, y)")
    found = judged(WrongLoss(), step)
    assert [f.fixes[0].code for f in found] == (["loss = F.binary_cross_entropy_with_logits(z, y)"] if fires else [])


@pytest.mark.parametrize(
    ("per_sample", "classes", "fires"),
    [(1.0, CLASSES, False), (1.02, CLASSES, False), (1.03, CLASSES, True), (3.0, 9, False)],
)
def test_argmax_of_several_labels(per_sample, classes, fires):
    step, text = Step(), "loss = F.cross_entropy(z, y.argmax(1))"
    table = step.numbers((BATCH, classes), 0, 1, mean=per_sample / classes, integral=True)
    picked = step.then("argmax", table, 0, CLASSES - 1, shape=(BATCH,))
    step.loss_of("cross_entropy", step.scores(), picked, text)
    found = judged(WrongLoss(), step)
    assert [f.fixes[0].code for f in found] == (["loss = F.binary_cross_entropy_with_logits(z, y)"] if fires else [])
    assert [f.location.text for f in found] == ([text] if fires else [])


@pytest.mark.parametrize(("rows", "fires"), [(BATCH, False), (10 * BATCH, True)])
def test_a_table_that_the_step_makes_is_a_search(rows, fires):
    """(tokens == asked).argmax(1) is the first place of a token; rows of a larger table are data, however that was made."""
    step = Step()
    tokens = step.numbers((rows, CLASSES), 0, 20, integral=True)
    equal = step.then("eq", tokens, shape=(rows, CLASSES))
    taken = step.then("getitem", equal, shape=(BATCH, CLASSES))
    step.recording.graph.values[taken] = replace(step.recording.graph.values[taken], integral=True, mean=0.3)
    picked = step.then("argmax", taken, 0, CLASSES - 1, shape=(BATCH,))
    step.loss_of("cross_entropy", step.scores(), picked, "loss = F.cross_entropy(z, y)")
    assert bool(judged(WrongLoss(), step)) is fires


@pytest.mark.parametrize(
    ("numbers", "names", "beside", "fires"),
    [
        (0.3, 0.5, 0.3, True),
        (0.31, 0.5, 0.3, False),  # less is gained than noise could
        (0.2, 0.49, 0.3, False),  # neither is much good
        (0.3, 0.5, 0.31, False),  # second choices are neighbours: a scale
    ],
)
def test_class_numbers_are_no_scale(numbers, names, beside, fires):
    step = Step()
    target = step.numbers((BATCH, 1), 0, 9, integral=True)
    step.loss_of("mse_loss", step.scores((BATCH, 1)), target, "loss = F.mse_loss(z, y)")
    step.arm("classes/as numbers", STUCK, right=numbers)
    step.arm("classes/as names", FALLING, right=names, beside=beside, kinds=10.0)
    found = judged(WrongLoss(), step)
    assert [f.fixes[0].code for f in found] == (["loss = F.cross_entropy(z, y)"] if fires else [])
    if fires:
        trial = found[0].fixes[0].trial
        assert (trial.verdict, trial.measured.control, trial.measured.treated) == (Verdict.CURED, 70.0, 50.0)


def test_mixtures_of_labels_are_meant():
    step = Step()
    step.loss_of("cross_entropy", step.scores(), step.numbers((BATCH, CLASSES), 0, 0.9, mean=0.1))
    assert judged(WrongLoss(), step) == []


def test_real_numbers_are_no_classes():
    step = Step()
    step.loss_of("cross_entropy", step.scores(), step.numbers((BATCH, CLASSES), -2.0, 3.0))
    assert "real numbers" in judged(WrongLoss(), step)[0].title


def test_one_class_is_none():
    step = Step()
    step.loss_of("cross_entropy", step.scores((BATCH, 1)), step.numbers((BATCH, 1), 0, 1, integral=True))
    assert "always 1" in judged(WrongLoss(), step)[0].title


@pytest.mark.parametrize(
    ("shape", "outputs", "high", "fires"),
    [((BATCH, 1), 10, 9, True), ((BATCH, 1), 10, 10, False), ((BATCH, 1), 1, 9, False), ((BATCH, 10), 10, 1, False)],
)
def test_class_numbers_as_a_regression(shape, outputs, high, fires):
    step = Step()
    step.loss_of("mse_loss", step.scores((BATCH, outputs)), step.numbers(shape, 0, high, integral=True))
    assert bool(judged(WrongLoss(), step)) is fires


def two_steps(low: float, losses: list[float], between: str = "") -> Step:
    step = Step()
    made = step.then("softmax", step.scores(), low=low, dim=1)
    made = step.then(between, made, low=low) if between else made
    log = step.then("log", made, low=-3.0, high=0.0, text="log_p = torch.log(F.softmax(z, dim=1))")
    step.loss(losses)
    return step.loss_of("nll_loss", log, step.labels())


@pytest.mark.parametrize(
    ("low", "losses", "severity"),
    [(0.01, FALLING, Severity.ADVICE), (0.01, STUCK, Severity.WARNING), (1e-31, FALLING, Severity.WARNING)],
)
def test_log_of_softmax(low, losses, severity):
    (found,) = judged(SoftmaxThenLog(), two_steps(low, losses))
    assert found.severity is severity
    assert found.fixes[0].code == "log_p = torch.nn.functional.log_softmax(z, dim=1)"


@pytest.mark.parametrize(
    ("phase", "further", "fires"), [("forward", 0, False), ("forward", 1, True), ("backward", 0, True)]
)
def test_where_it_made_the_first_nan_that_is_the_finding(phase, further, fires):
    step = two_steps(1e-31, FALLING)
    (found,) = judged(SoftmaxThenLog(), step)
    step.origin(phase, line=found.location.line + further, text="log_p = torch.log(F.softmax(z, dim=1))")
    assert bool(judged(SoftmaxThenLog(), step)) is fires


@pytest.mark.parametrize("between", ["clamp", "add"])
def test_a_guarded_logarithm_is_left_alone(between):
    assert judged(SoftmaxThenLog(), two_steps(0.0, STUCK, between)) == []


def summed(losses: list[float], update: float, reduction: str = "sum") -> Step:
    step = Step()
    step.linear("body", weight_rms=1.0, update=update)
    step.loss(losses)
    return step.loss_of("mse_loss", step.scores((BATCH, 1)), step.numbers((BATCH, 1)), reduction=reduction)


@pytest.mark.parametrize(
    ("losses", "update", "reduction", "fires"),
    [
        (STUCK, 0.2, "sum", True),
        (STUCK, 0.1, "sum", False),  # the steps are not too large
        (FALLING, 0.2, "sum", False),  # it trains
        (STUCK, 0.2, "mean", False),
    ],
)
def test_a_sum_that_hurts(losses, update, reduction, fires):
    assert bool(judged(LossSumReduction(), summed(losses, update, reduction))) is fires


@pytest.mark.parametrize(
    ("shape", "low", "high", "blank", "losses", "fires"),
    [
        ((40,), 0, 5, 0, 2.0, True),
        ((40,), 1, 5, 0, 2.0, False),
        ((40,), 0, 5, 6, 2.0, False),
        ((40,), 0, 6, 6, 2.0, True),
        ((8, 5), 0, 5, 0, 2.0, False),  # what fills up the rows
        ((8, 5), 0, 5, 0, lambda step: 2.0 - 0.1 * step, True),
        ((8, 5), 1, 5, 0, lambda step: 2.0 - 0.1 * step, False),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_the_blank_of_ctc_is_no_symbol(shape, low, high, blank, losses, fires, named):
    step = Builder().loss(losses)
    scores = step.operation("log_softmax", step.value((20, 8, 7)), out={"trained": True})
    targets = step.value(shape, "int64", low=low, high=high, integral=True)
    given = {"blank": blank} if named else {"4": blank}
    step.backward(step.operation("ctc_loss", scores, targets, shape=(), line=9, text="ctc(...)", **given))
    found = list(LabelRange().judge(step.done()))
    assert [(one.location.line, one.severity) for one in found] == [(9, Severity.ERROR)] * fires
