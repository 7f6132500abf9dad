from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.checks.training.learning_rate_too_high import LearningRateTooHigh
from netdoctor.finding import Abstention, Certainty, Finding, Severity, Verdict
from tests.checks.training.trials import falls, flat, network

CHECK = LearningRateTooHigh()
LINE = "opt = torch.optim.SGD(net.parameters(), lr=float(cfg['lr']), momentum=0.9)"


def judged(build) -> list:
    return list(CHECK.judge(build.done()))


def proven():
    build = network(0.3, line=LINE).loss(flat(steps=60))
    return build.arm("trial/control", flat()).arm("trial/lr x0.1", falls(0.5)).arm("trial/lr x0.01", falls(1.4))


def test_a_lower_rate_that_trains_proves_it():
    (found,) = judged(proven())
    assert found.severity is Severity.ERROR
    assert found.certainty is Certainty.PROVEN
    assert found.title == "the learning rate 1 is too high: at 0.1 it trains from the same start"
    assert found.location.line == 7
    (fix,) = found.fixes
    assert fix.code == "opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)"
    assert fix.trial.verdict is Verdict.CURED
    assert (len(fix.trial.control), len(fix.trial.treated), fix.trial.steps) == (40, 40, 40)
    assert fix.trial.treated[-1] == 0.5


@pytest.mark.parametrize(
    ("control", "treated", "longer", "fires"),
    [(2.0, 0.7, True, True), (2.0, 1.0, True, False), (2.0, 0.7, False, False), (1.8, 0.7, True, False)],
)
def test_a_slow_control_needs_a_longer_trial_and_a_far_better_rate(control, treated, longer, fires):
    """A control that loses 13 % beside 70 and 57 %, and one that loses 22 %."""
    facts = {"longer": True} if longer else {}
    build = network(0.3).loss(flat(steps=60)).arm("trial/control", falls(control, steps=180), **facts)
    found = judged(build.arm("trial/lr x0.1", falls(treated, steps=180), **facts))
    assert bool(found) is fires
    if fires:
        assert found[0].evidence[1].limit == pytest.approx(100 * (2.3 - treated) / 2.3 / 4, rel=0.05)


def test_the_best_of_the_lower_rates_is_prescribed():
    (found,) = judged(proven().arm("trial/lr x0.01", falls(0.1), lr=0.0123))
    assert "lr=0.0123" in found.fixes[0].code


def blown(top: float, steps: int = 12) -> np.ndarray:
    """A few samples that are learned by heart in the end, whatever the loss came to on the way."""
    return np.concatenate([[2.3, 2.3 * top], np.geomspace(2.0, 0.02, steps - 2)])


@pytest.mark.parametrize(
    ("own", "control", "treated", "end", "fires"),
    [
        (44.0, 170.0, 1.0, 2.4, True),
        (44.0, 9.9, 1.0, 2.4, False),  # the copy is not driven up tenfold
        (44.0, 10.0, 2.0, 2.4, True),
        (44.0, 170.0, 2.1, 2.4, False),  # at the lower rate the loss jumps as well
        (9.9, 170.0, 1.0, 2.4, False),  # the script itself was not
        (44.0, 170.0, 1.0, 2.2, False),  # it came below its start again
    ],
)
def test_a_control_that_is_driven_up_first(own, control, treated, end, fires):
    losses = [2.3, 2.3 * own, *np.full(58, end)]
    build = network(0.3, line=LINE).loss(losses).arm("trial/control", blown(control), lr=1.0)
    found = judged(build.arm("trial/lr x0.1", blown(170.0), lr=0.1).arm("trial/lr x0.01", blown(treated), lr=0.01))
    assert [f.fixes[0].code for f in found if isinstance(f, Finding)] == [
        LINE.replace("float(cfg['lr'])", "0.01")
    ] * fires
    if fires:
        assert [e.measured for e in found[0].evidence] == pytest.approx([control, treated])


@pytest.mark.parametrize(("left", "fires"), [(0.71, False), (0.69, True)])
def test_what_a_lower_rate_must_gain(left, fires):
    build = network(0.3).loss(flat(steps=60)).arm("trial/control", flat()).arm("trial/lr x0.1", falls(2.3 * left))
    assert bool(judged(build)) is fires


@pytest.mark.parametrize(("left", "fires"), [(0.92, True), (0.88, False)])
def test_what_the_control_may_gain(left, fires):
    assert bool(judged(proven().arm("trial/control", falls(2.3 * left)))) is fires


@pytest.mark.parametrize(
    "control", [np.full(40, math.nan), np.r_[2.3, np.full(39, math.inf)], 2.3 * 1.3 ** np.arange(40)]
)
def test_a_control_that_breaks_or_grows_has_gained_nothing(control):
    build = network(0.3).loss(math.nan)
    assert len(judged(build.arm("trial/control", control).arm("trial/lr x0.1", falls(0.5)))) == 1


def test_a_control_that_only_recovers_from_its_own_jump_has_gained_nothing():
    jump = np.concatenate([[2.3], 40 * np.exp(-np.arange(39) / 6) + 2.2])
    assert len(judged(proven().arm("trial/control", jump))) == 1


@pytest.mark.parametrize(("to", "fires"), [(2.3 * 0.85, True), (2.3 * 0.6, False)])
def test_a_real_run_that_learns_needs_no_trial(to, fires):
    assert bool(judged(proven().loss(falls(to, steps=60)))) is fires


def test_a_converged_run_is_left_alone():
    assert judged(proven().loss(lambda s: 0.1 + 2.2 * math.exp(-3 * s))) == []


def test_lower_rates_that_train_no_better_refute_it():
    build = network(0.3).loss(flat(steps=60))
    assert judged(build.arm("trial/control", flat()).arm("trial/lr x0.1", flat())) == []


@pytest.mark.parametrize(("ratio", "kind"), [(0.11, Finding), (0.09, Abstention)])
def test_without_trials_only_flagrant_updates_are_reported(ratio, kind):
    (said,) = judged(network(ratio, line=LINE).loss(flat(steps=60)))
    assert type(said) is kind
    if kind is Finding:
        assert said.certainty is Certainty.INFERRED
        assert said.evidence[0].measured == pytest.approx(ratio)
        assert said.places == ("body.0.weight", "body.2.weight")
        assert "lr=0.1," in said.fixes[0].code


def test_without_trials_a_learning_run_is_fine_whatever_the_ratio():
    assert judged(network(0.5).loss(falls(0.5, steps=60))) == []


def test_trials_that_could_not_run_are_said():
    (said,) = judged(network(1e-3).loss(flat(steps=60)).arm("trial/control", failure="numpy in between"))
    assert said == Abstention("learning-rate-too-high", "numpy in between")


def test_one_matrix_of_three_is_no_flagrant_case():
    build = network(1e-3).linear("head", weight_rms=0.1, update=0.05).loss(flat(steps=60))
    assert isinstance(judged(build)[0], Abstention)


@pytest.mark.parametrize(
    "build",
    [
        network(1e-3).parameter("norm.weight", (16,), rms=0.01, update=0.01),  # a vector
        network(1e-3).parameter("b", (16, 16), rms=lambda s: 0.0 if s == 0 else 0.01, update=0.01),  # LoRA's B
        network(1e-3).parameter("words.weight", (9, 9), module_type="Embedding", rms=0.01, update=0.01),
        network(1e-3).linear("x", weight_rms=0.1, update=lambda s: 0.5 if s < 5 else 1e-4),  # Adam's start
    ],
)
def test_large_ratios_that_are_no_sign(build):
    strict = LearningRateTooHigh(share=0.01)
    (said,) = strict.judge(build.loss(flat(steps=60)).done())
    assert isinstance(said, Abstention)


def test_too_few_samples_have_no_median():
    (said,) = judged(network(0.5, steps=8).loss(flat(steps=8)))
    assert isinstance(said, Abstention)


def test_nan_that_came_with_the_data_is_not_of_the_rate():
    assert judged(network(0.5).loss(math.nan).origin("input")) == []
    assert isinstance(judged(network(0.5).loss(math.nan).origin("forward"))[0], Finding)


def test_no_optimizer_no_rate():
    build = proven()
    build.recording.optimizers.clear()
    assert judged(build) == []


def until_nan(*levels):
    """Ten steps at each level, then NaN."""
    return np.r_[np.repeat(levels, 10), np.full(4, math.nan)]


@pytest.mark.parametrize(
    ("losses", "fires"),
    [
        (until_nan(2.3, 2.0, 1.9, 1.83), False),  # 20 % gone, and still falling: what broke is not the rate
        (until_nan(2.3, 2.0, 1.9, 1.86), True),
        (until_nan(2.3, 1.0, 1.4, 1.8), True),  # on its way up again
        (np.r_[until_nan(2.3, 2.0, 1.9, 1.0)[:-4], 9.0, math.nan], True),  # it blew up at the end
        (np.r_[2.3, 2.0, 1.5, 1.0, 0.5, 0.4, 0.3, math.nan], True),  # too short to tell
    ],
)
def test_a_loss_that_fell_until_something_broke(losses, fires):
    build = network(0.3, steps=len(losses)).loss(losses)
    assert bool(judged(build.arm("trial/control", np.full(40, math.nan)).arm("trial/lr x0.1", falls(0.5)))) is fires


def test_a_loop_without_an_optimizer_is_told_by_the_line_that_moves_the_weights():
    build = proven().arm("trial/control", flat(), lr=0.5).arm("trial/lr x0.1", falls(0.5), lr=0.05)
    build.recording.optimizers.clear()
    build.event(0, "backward", line=8)
    assert judged(build)[0].location.line == 8
    build.event(0, "moves", line=11)
    (found,) = judged(build)
    assert found.title.startswith("the learning rate 0.5 is too high")
    assert found.location.line == 11
    assert "lr = " in found.fixes[0].code
