"""recurrent-gradients, lstm-forget-bias and depth-without-shortcuts on hand-made recordings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from netdoctor.checks.signal.depth_without_shortcuts import DepthWithoutShortcuts
from netdoctor.checks.signal.lstm_forget_bias import LstmForgetBias
from netdoctor.checks.signal.recurrent_gradients import RecurrentGradients
from netdoctor.finding import Severity
from netdoctor.recording import Role, Stat
from tests.checks.builders import Builder, Curve
from tests.checks.signal.chains import FALLING, FLAT, chain, findings

TIME, FORGET, DEPTH = RecurrentGradients(), LstmForgetBias(), DepthWithoutShortcuts()


def rnn(ratio: float, loss: Curve = FLAT) -> Builder:
    build = Builder(60).layer("rnn", "RNN", rms=1.0).loss(loss).facts(loss_family="cross_entropy", classes=10)
    return build.of_layer("rnn", Stat.TIME_RATIO, ratio, Role.OUTPUT_GRADIENT)


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [(2.9, None), (3.1, Severity.ERROR), (-4.9, None), (-5.1, Severity.WARNING)],
)
def test_growth_and_decay_along_time(ratio: float, severity: Severity | None) -> None:
    found = findings(TIME, rnn(ratio).done())
    assert [f.severity for f in found] == ([] if severity is None else [severity])
    assert not findings(TIME, rnn(ratio, FALLING).done())


@pytest.mark.parametrize(("decades", "severity"), [(-4.9, None), (-5.1, Severity.WARNING), (3.1, Severity.ERROR)])
def test_what_a_copy_showed_counts_before_what_was_recorded(decades: float, severity: Severity | None) -> None:
    """Where only the last position is read, the recorded gradients of the others are nothing but zeros."""
    build = rnn(math.nan).arm("time/rnn", decades=decades, positions=40)
    assert [f.severity for f in findings(TIME, build.done())] == ([] if severity is None else [severity])


RISING = [2.3 * 1.05**step for step in range(60)]
BROKEN = [2.3 if step < 10 else 2.3 * (9.0 if step < 20 else 30.0) for step in range(60)]


@pytest.mark.parametrize("loss", [RISING, [*RISING[:40], *[math.nan] * 20]])
def test_a_gradient_that_dies_breaks_no_loss(loss: Curve) -> None:
    assert not findings(TIME, rnn(-9.0, loss).done())
    assert findings(TIME, rnn(4.0, loss).done())


@pytest.mark.parametrize(("before", "fires"), [(3.1, True), (2.9, False)])
def test_what_is_measured_after_the_loss_broke_does_not_count(before: float, fires: bool) -> None:
    """It breaks at step 20, where it is thirty times its start; the ratio of most steps is that of thrown weights."""
    recording = rnn(0.0, BROKEN).of_layer(
        "rnn", Stat.TIME_RATIO, lambda n: before if n < 20 else 8.0, Role.OUTPUT_GRADIENT
    )
    assert bool(findings(TIME, recording.done())) is fires


@pytest.mark.parametrize(("end", "fires"), [(2.25, True), (1.9, True), (1.7, False)])
@pytest.mark.parametrize("ratio", [-9.0, 4.0])
def test_a_recurrence_that_trains_at_another_rate(end: float, fires: bool, ratio: float) -> None:
    """Less than a fifth of 2.3 is no cure. What explodes may well be held by a low rate, and stays a cause."""
    build = rnn(ratio).arm("trial/control", [2.3] * 60, lr=0.1)
    build.arm("trial/lr x0.1", [2.3 - (2.3 - end) * n / 50 for n in range(50)] + [end] * 10, lr=0.01)
    assert bool(findings(TIME, build.facts(loss_lower_bound=0.0).done())) is (fires or ratio > 0)


@pytest.mark.parametrize(("died", "fires"), [(20, False), (50, True), (None, True)])
def test_a_rate_that_came_to_nothing_may_be_the_reason(died: int | None, fires: bool) -> None:
    """A third of the run or more without a rate, and no trial that tells."""
    lr = 0.1 if died is None else [0.1 if n < died else 1e-5 for n in range(60)]
    assert bool(findings(TIME, rnn(-9.0).scalar("lr", lr).done())) is fires


@pytest.mark.parametrize(("end", "fires"), [(2.0, True), (1.7, False)])
def test_a_living_rate_tells_whether_it_was_the_reason(end: float, fires: bool) -> None:
    build = rnn(-9.0).scalar("lr", [0.1 if n < 20 else 1e-5 for n in range(60)])
    build.arm("revival/as it ended", [2.3] * 9, steps=80).arm("revival/a third of the highest rate", [2.3] + [end] * 8)
    assert bool(findings(TIME, build.done())) is fires


@pytest.mark.parametrize(("type_", "offered"), [("RNN", True), ("GRU", False), ("LSTM", False)])
def test_what_is_gated_is_not_told_to_become_so(type_: str, offered: bool) -> None:
    build = Builder(60).layer("rnn", type_, rms=1.0).loss(FLAT).facts(loss_family="cross_entropy", classes=10)
    (found,) = findings(TIME, build.of_layer("rnn", Stat.TIME_RATIO, -9.0, Role.OUTPUT_GRADIENT).done())
    assert ("gated-recurrence" in [fix.treatment for fix in found.fixes]) is offered


@pytest.mark.parametrize(("calls", "fires"), [(8, False), (14, False), (16, True)])
def test_the_line_of_the_first_calls_is_drawn_on_to_the_last(calls: int, fires: bool) -> None:
    """Eight calls are measured, each with 0.4 decades less than the next."""
    build = Builder(60).loss(FLAT).facts(loss_family="cross_entropy", classes=10)
    for call in range(8):
        build.layer("cell", "RNNCell", call=call, rms=1.0, gradient=1e-12 * 10 ** (0.35 * call))
    for _ in range(calls):
        build.operation("rnn_tanh_cell", build.value((8, 4)), module="cell")
    assert bool(findings(TIME, build.done())) is fires


@pytest.mark.parametrize(("growth", "fires"), [(1.0, False), (1.2, False), (2.0, True)])
def test_a_cell_called_in_a_loop(growth: float, fires: bool) -> None:
    build = Builder(60).loss(FLAT).facts(loss_family="cross_entropy", classes=10)
    for call in range(20):
        build.linear("cell", call=call, rms=1.0, gradient=1e-3 * growth ** (19 - call))
    recording = build.done()
    assert bool(findings(TIME, recording)) is fires
    recording.layers = [replace(layer, weight=f"w{layer.call}") for layer in recording.layers]
    assert not findings(TIME, recording)  # a loop over weights of their own is depth


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize(("decades", "fires"), [(0.1, False), (0.3, True)])
def test_a_cell_of_loose_matrices(decades: float, fires: bool, again: bool) -> None:
    """`tanh(x @ W.t() + h @ U.t())`: no layer but the activation. Matrices of their own at each call are depth."""
    build = Builder(60).loss(FLAT).facts(loss_family="cross_entropy", classes=10)
    for call in range(8):
        build.activation("cell", "tanh", call=call, rms=1.0, gradient=1e-12 * 10 ** (decades * call))
    weight = build.value((4, 4), origin="parameter", name="cell.U")
    for _ in range(30):
        read = weight if again else build.value((4, 4), origin="parameter", name="cell.U")
        build.operation("matmul", build.value((8, 4)), read, module="cell")
    assert bool(findings(TIME, build.done())) is (fires and again)


@pytest.mark.parametrize(("mean", "fires"), [(0.0, True), (0.12, True), (0.13, False), (0.25, False)])
def test_forget_bias(mean: float, fires: bool) -> None:
    build = Builder(20).layer("lstm", "LSTM", rms=1.0)
    for name, value in (("lstm.bias_ih_l0", mean), ("lstm.bias_hh_l0", 0.0)):
        build.parameter(name, (64,)).of_parameter(name, Stat.MEAN, value)
    found = findings(FORGET, build.done())
    assert bool(found) is fires
    assert all(f.severity is Severity.ADVICE and "model.lstm.bias_ih_l0" in f.fixes[0].code for f in found)
    assert not findings(FORGET, build.facts(pretrained=True).done())


@pytest.mark.parametrize(("layers", "decades", "fires"), [(15, 4, False), (16, 4, True), (16, 1.9, False)])
def test_depth(layers: int, decades: float, fires: bool) -> None:
    gradients = [10 ** (decades * k / (layers - 1)) for k in range(layers)]
    build = chain([1.0] * layers, gradients=gradients)
    build.operation("relu", build.value((4, 16)), module="body.1")
    assert bool(findings(DEPTH, build.done())) is fires
    build.operation("add", build.value((4, 16)), build.value((4, 16)), module="body")
    assert not findings(DEPTH, build.done())


def test_a_copy_that_failed_leaves_what_was_recorded() -> None:
    (found,) = findings(TIME, rnn(-5.1).arm("time/rnn", failure="no copy").done())
    assert found.severity is Severity.WARNING
