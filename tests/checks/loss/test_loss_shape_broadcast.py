from __future__ import annotations

import pytest

from netdoctor.checks.loss.loss_shape_broadcast import LossShapeBroadcast
from netdoctor.finding import Severity
from tests.checks.loss.steps import Step, judged

N = 32


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_a_column_against_a_vector_is_an_error(name):
    step = Step()
    text = "loss = criterion(model(x), y)"
    (found,) = judged(LossShapeBroadcast(), step.loss_of(name, step.scores((N, 1)), step.numbers((N,)), text))
    assert found.severity is Severity.ERROR
    assert "32×32" in found.title
    assert found.evidence[0].measured == N * N
    assert found.fixes[0].code == "loss = criterion(model(x).squeeze(-1), y)"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("loss = ((p - y) ** 2).mean()", "loss = ((p.squeeze(-1) - y) ** 2).mean()"),
        ("loss = (net(x) - y).abs().mean()", "loss = (net(x).squeeze(-1) - y).abs().mean()"),
        ("loss = mystery(p, y", "prediction = prediction.squeeze(-1)"),
    ],
)
def test_a_difference_by_hand(text, code):
    step = Step()
    gap = step.operation("sub", step.scores((N, 1)), step.numbers((N,)), shape=(N, N), line=8, text=text)
    step.backward(step.operation("mean", step.operation("pow", gap, **{"1": 2}), shape=()))
    (found,) = judged(LossShapeBroadcast(), step)
    assert found.fixes[0].code == code


def test_the_target_is_squeezed_where_it_is_the_longer_one():
    step = Step()
    text = "loss = F.mse_loss(out, target)"
    (found,) = judged(LossShapeBroadcast(), step.loss_of("mse_loss", step.scores((N,)), step.numbers((N, 1)), text))
    assert found.fixes[0].code == "loss = F.mse_loss(out, target.squeeze(-1))"


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ((N, 1), (N, 1)),
        ((N,), (N,)),
        ((N, 1), ()),  # a scalar target
        ((N, 5), (5,)),  # one value per column
        ((N, 1), (1, N)),  # pairs on purpose: both were given the same number of dimensions
        ((1, 1), (1,)),  # one sample
        ((N, 5), (N, 1)),
    ],
)
def test_it_stays_silent(prediction, target):
    step = Step()
    assert judged(LossShapeBroadcast(), step.loss_of("mse_loss", step.scores(prediction), step.numbers(target))) == []


def test_pairs_of_predictions_are_meant():
    step = Step()
    one = step.scores((N, 1))
    step.backward(step.operation("sub", one, step.operation("squeeze", one, shape=(N,)), shape=(N, N)))
    assert judged(LossShapeBroadcast(), step) == []
