"""batchnorm-masking on hand-made recordings."""

from __future__ import annotations

import pytest

from netdoctor.checks.signal.batchnorm_masking import BatchnormMasking
from netdoctor.finding import Abstention, Certainty, Severity
from tests.checks.builders import Builder, Curve
from tests.checks.signal.chains import FALLING, FLAT, findings

CHECK = BatchnormMasking()
BYPASSED, MATCHED = "batchnorm/bypassed", "batchnorm/bypassed, matched initialisation"


def net(weight: float = 1.0, loss: Curve = FLAT, norm: str = "BatchNorm1d") -> Builder:
    """Four layers of width 64 with a norm behind each, and a head."""
    build = Builder(60).loss(loss).facts(loss_family="cross_entropy", classes=10)
    for index in range(4):
        build.linear(f"{index}.fc", fan_in=64, units=64, weight_rms=weight, rms=8.0, line=20 + index)
        build.layer(f"{index}.norm", norm, rms=1.0).activation(f"{index}.act", rms=0.7)
    return build.linear("head", fan_in=64, units=10, weight_rms=0.1, rms=1.0)


def bypassed(build: Builder, forward: float = 0.0, backward: float = 0.0, finite: bool = True) -> Builder:
    return build.arm(BYPASSED, finite=finite, forward_decades=forward, backward_decades=backward)


@pytest.mark.parametrize(
    ("forward", "backward", "finite", "fires"),
    [(2.9, 0, True, False), (3.0, 0, True, True), (0, 3.1, True, True), (-3.1, 0, True, True), (0, 0, False, True)],
)
def test_the_bypassed_signal_decides(forward: float, backward: float, finite: bool, fires: bool) -> None:
    found = findings(CHECK, bypassed(net(), forward, backward, finite).done())
    assert bool(found) is fires
    assert all((f.location.module, f.location.line, f.severity) == ("0.fc", 20, Severity.ERROR) for f in found)


def test_training_that_learns_makes_it_a_warning() -> None:
    assert findings(CHECK, bypassed(net(loss=FALLING), 5.0).done())[0].severity is Severity.WARNING


def test_a_matched_initialisation_that_keeps_the_signal_proves_it() -> None:
    build = bypassed(net(), 5.0).arm(MATCHED, finite=True, forward_decades=0.2, backward_decades=0.1)
    assert findings(CHECK, build.done())[0].certainty is Certainty.PROVEN
    still = bypassed(net(), 5.0).arm(MATCHED, finite=True, forward_decades=5.0)
    assert findings(CHECK, still.done())[0].certainty is Certainty.MEASURED


@pytest.mark.parametrize("weight", [0.072, 0.125, 0.177, 0.2])
def test_standard_initialisation_is_silent_whatever_the_bypass_shows(weight: float) -> None:
    assert not findings(CHECK, bypassed(net(weight), -5.0).done())


@pytest.mark.parametrize(
    ("loss", "decades", "fires"), [(FALLING, -5.0, False), (FALLING, -7.0, True), (FLAT, -5.0, True)]
)
def test_small_weights_that_batchnorm_rescues(loss: Curve, decades: float, fires: bool) -> None:
    assert bool(findings(CHECK, bypassed(net(0.01, loss), decades).done())) is fires


def test_it_abstains_without_the_experiment_but_only_with_a_suspicion() -> None:
    assert [type(said) for said in CHECK.judge(net().done())] == [Abstention]
    failed = net().arm(BYPASSED, failure="the model cannot be copied")
    assert [said.reason for said in CHECK.judge(failed.done()) if isinstance(said, Abstention)] == [
        "the model cannot be copied"
    ]
    assert not list(CHECK.judge(net(0.1).done()))


def test_other_norms_and_pretrained_models_are_silent() -> None:
    assert not list(CHECK.judge(bypassed(net(norm="LayerNorm"), 9.0).done()))
    assert not list(CHECK.judge(bypassed(net(), 9.0).facts(pretrained=True).done()))
