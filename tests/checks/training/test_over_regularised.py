from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.checks.training.decayed import strong
from netdoctor.checks.training.over_regularised import OverRegularised
from netdoctor.finding import Abstention, Certainty, Finding, Severity
from tests.checks.builders import Builder, Curve


def recording(pull: float = 0.5, type_: str = "SGD", decay: float = 0.1, update: float = 0.0) -> Builder:
    """A weight of scale 1 whose gradient is so small that its decay pulls with `pull` of it."""
    build = Builder(steps=60).linear("0", weight_rms=1.0, weight_gradient=decay / pull, update=update)
    return build.optimizer(type_, lr=0.1, weight_decay=decay, line=9).loss(1.0)


def arms(build: Builder, without: str = "weight decay", data: float = 0.5) -> Builder:
    build.arm("regularisation/as it is", [1.0] * 60, data=1.0, total=1.0, before=1.0)
    return build.arm(f"regularisation/without {without}", [1.0] * 60, data=data, total=1.0, before=1.0)


def judged(build: Builder) -> list[Finding]:
    return [found for found in OverRegularised().judge(build.done()) if isinstance(found, Finding)]


def test_decay_is_named_with_its_optimizer() -> None:
    (finding,) = judged(arms(recording()))
    assert "weight decay of 0.1" in finding.title
    assert (finding.location.line, finding.certainty) == (9, Certainty.PROVEN)
    assert finding.fixes[0].code == "weight_decay=0.001"


@pytest.mark.parametrize(("pull", "fires"), [(0.19, False), (0.21, True)])
def test_the_pull(pull: float, fires: bool) -> None:
    assert bool(judged(arms(recording(pull)))) is fires


@pytest.mark.parametrize(
    ("loss", "severity"), [(1.0, Severity.ERROR), (lambda step: 1.0 * 0.98**step, Severity.WARNING)]
)
def test_what_learns_nothing_is_an_error(loss: Curve, severity: Severity) -> None:
    assert [finding.severity for finding in judged(arms(recording()).loss(loss))] == [severity]


def beginning(kept: float = 0.9, after: float = 0.5, decay: float = 0.5) -> Builder:
    """A copy that goes from the start: its loss on other batches, with all of the decay and with little."""
    build = recording(decay=decay).arm("decay/as it is", [1.0] * 60, before=1.0, data=kept)
    return build.arm("decay/a hundredth of it", [1.0] * 60, before=1.0, data=after)


@pytest.mark.parametrize(
    ("kept", "after", "fires"),
    [
        (1.0, 0.69, True),
        (1.0, 0.71, False),
        (0.84, 0.5, True),
        (0.82, 0.5, False),
        (math.nan, 0.5, True),
        (1.0, math.nan, False),
    ],
)
def test_from_the_start_a_weak_decay_trains(kept: float, after: float, fires: bool) -> None:
    """30 % of the loss, and three times as much as with all of the decay."""
    found = judged(beginning(kept, after))
    assert [(f.severity, f.certainty, f.location.line) for f in found] == [
        (Severity.ERROR, Certainty.PROVEN, 9)
    ] * fires
    for finding in found:
        assert finding.fixes[0].code == "weight_decay=0.001"
        assert finding.fixes[0].trial is not None


def test_a_training_that_learns_is_not_judged_by_its_start() -> None:
    assert judged(beginning().loss(lambda step: 1.0 * 0.95**step)) == []


@pytest.mark.parametrize(("decay", "fires"), [(0.1, False), (0.11, True)])
def test_from_the_start_a_usual_decay_is_excused_by_the_rate(decay: float, fires: bool) -> None:
    build = beginning(decay=decay).arm("trial/control", [1.0] * 60)
    assert bool(judged(build.arm("trial/lr x0.1", np.linspace(1.0, 0.3, 60)))) is fires


def test_the_optimizer_with_the_decay_is_named() -> None:
    build = Builder(steps=60).linear("0", weight_rms=1.0, weight_gradient=0.1).optimizer("SGD", lr=0.1, line=8)
    build.optimizer("SGD", lr=0.1, weight_decay=0.5, line=9).loss(1.0).arm(
        "decay/as it is", [1.0], before=1.0, data=1.0
    )
    (finding,) = judged(build.arm("decay/a hundredth of it", [1.0], before=1.0, data=0.3))
    assert finding.location.line == 9


@pytest.mark.parametrize(("pull", "level", "asked"), [(0.09, 1.0, False), (0.11, 1.0, True), (0.11, 0.05, False)])
@pytest.mark.parametrize("early", [True, False])
def test_who_is_asked(pull: float, level: float, asked: bool, early: bool) -> None:
    """A pull that shows in one third of the run will do: early, or when the weights are gone."""
    gradient = [0.1 / (pull if (n < 20) is early else 0.01) for n in range(60)]
    build = Builder(steps=60).linear("0", weight_rms=1.0, weight_gradient=gradient)
    build.optimizer("SGD", lr=0.1, weight_decay=0.1).loss([1.0] * 10 + [level] * 50)
    assert strong(build.done()) is asked


@pytest.mark.parametrize(("update", "fires"), [(0.06, False), (0.04, True)])
def test_decoupled_decay_is_compared_with_the_update(update: float, fires: bool) -> None:
    # lr 0.1 x decay 0.1 x weight 1 = 0.01 of the weight per step
    assert bool(judged(arms(recording(1e-3, "AdamW", update=update)))) is fires


@pytest.mark.parametrize(("data", "fires"), [(0.72, False), (0.68, True)])
def test_what_is_gained_without(data: float, fires: bool) -> None:
    assert bool(judged(arms(recording(), data=data))) is fires


def test_a_penalty_needs_no_decay_and_is_named_by_its_line() -> None:
    build = Builder(steps=60).linear("0", weight_rms=1.0).optimizer("Adam", lr=0.1)
    data = build.operation("cross_entropy", build.weight("0.weight"), build.value((8,), "int64"), shape=())
    penalty = build.operation("sum", build.weight("0.weight"), shape=())
    build.backward(build.operation("add", data, penalty, line=14, text="loss = ce + 0.1 * l1"))
    (finding,) = judged(arms(build, "penalty"))
    assert (finding.location.line, finding.fixes[0].treatment) == (14, "less-penalty")


def test_it_abstains_where_the_copy_could_not_run_and_is_silent_without_it() -> None:
    build = recording().arm("regularisation/as it is", failure="no copy")
    assert list(OverRegularised().judge(build.done())) == [Abstention("over-regularised", "no copy")]
    assert judged(recording()) == []


@pytest.mark.parametrize(("decay", "treated", "fires"), [(0.1, 0.3, False), (0.11, 0.3, True), (0.1, 0.9, True)])
def test_a_usual_decay_that_pulls_because_of_the_learning_rate(decay: float, treated: float, fires: bool) -> None:
    """Where a lower rate trains, the rate is the cause."""
    build = arms(recording(decay=decay)).arm("trial/control", [1.0] * 60)
    assert bool(judged(build.arm("trial/lr x0.1", np.linspace(1.0, treated, 60)))) is fires


def sides(kept: float, left: float) -> list[Finding]:
    build = Builder(steps=60).linear("0", weight_rms=1.0).optimizer("Adam", lr=0.1)
    data = build.operation("mse_loss", build.weight("0.weight"), build.value((8,)), shape=())
    other = build.operation("sum", build.weight("0.weight"), shape=())
    build.backward(build.operation("add", data, other, line=14, text="loss = recon + kl"))
    build.arm("side-terms/as it is", [1.0] * 180, left=kept)
    return judged(build.arm("side-terms/with little of them", [0.5] * 180, left=left))


@pytest.mark.parametrize(
    ("kept", "left", "fires"),
    [(0.91, 0.63, True), (0.89, 0.1, False), (1.0, 0.69, True), (1.0, 0.71, False), (float("nan"), 0.1, False)],
)
def test_a_side_term_that_outweighs_the_data(kept: float, left: float, fires: bool) -> None:
    found = sides(kept, left)
    assert bool(found) is fires
    if fires:
        assert (found[0].location.line, found[0].severity, found[0].certainty) == (14, Severity.ERROR, Certainty.PROVEN)
        trial = found[0].fixes[0].trial
        assert trial is not None
        assert trial.measured is not None
        assert (trial.measured.control, trial.measured.treated) == (100 * kept, 100 * left)


def test_side_terms_that_could_not_run_say_nothing() -> None:
    build = Builder(steps=60).arm("side-terms/as it is", failure="no copy")
    assert judged(build) == []
