from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from netdoctor.checks.training.loss_diverging import LossDiverging
from netdoctor.finding import Severity
from netdoctor.recording import SourceLine
from tests.checks.builders import Builder
from tests.checks.training.trials import falls, flat

UP = 2.3 * np.exp(np.arange(60) / 20)


def run(losses, **facts) -> Builder:
    facts = {"loss_family": "cross_entropy", "loss_lower_bound": 0.0, **facts}
    return Builder(60).optimizer("SGD").loss(losses).facts(**facts)


def negative(build: Builder, name: str = "mse_loss") -> Builder:
    loss = build.operation(name, build.weight("w"), build.value((4,)), shape=(), line=20)
    return build.backward(build.operation("neg", loss, line=21))


def judged(build) -> list:
    return list(LossDiverging().judge(build.done()))


def test_a_rising_loss_is_an_error():
    (found,) = judged(run(UP))
    assert found.severity is Severity.ERROR
    assert found.location.step == 1  # the first loss was the lowest
    assert found.first_step == 59  # so it explains nothing that came before
    (evidence,) = found.evidence
    assert evidence.measured > evidence.limit


def test_falling_and_coming_back_names_the_turn():
    losses = np.concatenate([2.3 * np.exp(-np.arange(30) / 8), np.full(30, 1.3)])
    (found,) = judged(run(losses))
    assert found.location.step == 30
    assert found.evidence[0].limit == pytest.approx(losses.min())


def test_a_fitted_tiny_batch_clears_the_sign():
    (found,) = judged(run(UP).arm("overfit/own", reached=True))
    assert "the sign of the loss is right" in found.explanation


@pytest.mark.parametrize(("factor", "fires"), [(1.5, False), (2.8, True)])
def test_a_loss_of_ones_own_must_double(factor, fires):
    losses = np.linspace(1.0, factor, 60)
    assert bool(judged(run(losses, loss_family="custom", loss_lower_bound=-math.inf))) is fires
    assert len(judged(run(losses))) == 1


def test_an_optimizer_that_maximises_is_named():
    build = Builder(60).loss(UP).facts(loss_family="mse", loss_lower_bound=0.0).optimizer("Adam", maximize=True)
    (found,) = judged(build)
    assert "maximize=True" in found.explanation
    assert found.first_step == 1
    assert found.fixes[0].code.endswith("group['maximize'] = False")
    source = SourceLine("t.py", 3, "opt = Adam(net.parameters(), lr=1e-3, maximize = True)")
    build.recording.optimizers[0] = replace(build.recording.optimizers[0], source=source)
    (found,) = judged(build)
    assert found.location.line == 3
    assert found.fixes[0].code == "opt = Adam(net.parameters(), lr=1e-3)"


@pytest.mark.parametrize(("factor", "fires"), [(9.0, False), (15.0, True)])
def test_an_objective_of_ones_own_may_be_maximised(factor, fires):
    build = Builder(60).loss(np.linspace(1.0, factor, 60)).optimizer("Adam", maximize=True)
    assert bool(judged(build)) is fires


@pytest.mark.parametrize(("end", "fires"), [(-1.0, False), (-2.0, True), (-500.0, True)])
def test_going_through_zero(end, fires):
    # from 2.3 over 60 steps: the last fifth ends above `end`, the limit is minus half of the start
    assert bool(judged(run(np.linspace(2.3, end, 60)))) is fires


def test_a_loss_of_ones_own_may_be_negative():
    assert judged(run(np.linspace(2.3, -500, 60), loss_family="custom", loss_lower_bound=-math.inf)) == []


def test_the_minus_sign_is_found_in_the_graph():
    losses = np.linspace(-1.0, -40.0, 60)
    (found,) = judged(negative(run(losses, loss_family="custom", loss_lower_bound=-math.inf)))
    assert "maximised" in found.title
    assert (found.location.line, found.location.operation) == (21, "neg")
    assert found.fixes[0].treatment == "drop-minus-sign"


@pytest.mark.parametrize(("last", "fires"), [(-1.9, False), (-2.1, True)])
def test_a_minus_sign_that_ends_in_nan_is_found_by_what_came_before(last, fires):
    losses = np.append(np.linspace(-1.0, last, 6), np.full(54, np.nan))
    assert bool(judged(negative(run(losses)))) is fires


@pytest.mark.parametrize(
    "build",
    [
        negative(run(-flat(steps=60), loss_family="custom", loss_lower_bound=-math.inf)),  # does not fall
        negative(
            run(np.linspace(-1, -40, 60), loss_family="custom", loss_lower_bound=-math.inf), "mul"
        ),  # not of a loss
        negative(run(np.linspace(-1, -40, 60), loss_family="custom", loss_lower_bound=-math.inf, moving_target=True)),
        run(falls(0.5, steps=60)),
        run(flat(steps=60)),
        run(math.nan),
        run(UP, moving_target=True),
        run(UP, several_optimizers=True),
        Builder(60),
    ],
)
def test_it_stays_silent(build):
    assert judged(build) == []


@pytest.mark.parametrize(("steps", "fires"), [(7, False), (20, True)])
def test_too_short(steps, fires):
    build = Builder(steps).loss(UP[:steps]).facts(loss_family="mse", loss_lower_bound=0.0)
    assert bool(judged(build)) is fires
