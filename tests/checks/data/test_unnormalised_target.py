from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.data.unnormalised_target import UnnormalisedTarget
from netdoctor.finding import Certainty, Finding, Severity
from tests.checks.builders import Builder
from tests.checks.data.facts import facts, rows


def recording(mean: float, std: float, left: float, family: str = "mse") -> Builder:
    """A regression whose loss ends at `left` times the variance of its target."""
    build = Builder(steps=60)
    target = facts(rows(mean, std, columns=1), name="mse_loss", shape=(32, 1))
    made = build.operation("linear", build.value((32, 4)), build.weight("0.weight"), module="0", shape=(32, 1))
    y = build.value((32, 1), mean=mean, std=std)
    build.backward(build.operation("mse_loss", made, y, shape=(), reduction="mean"))
    build.recording.targets = [target]
    start = mean**2 + std**2
    build.loss(lambda step: left * std**2 + max(0.0, start - left * std**2) * 0.8**step)
    return build.facts(loss_family=family, loss_lower_bound=0.0)


def judged(build: Builder) -> list[Finding]:
    return list(UnnormalisedTarget().judge(build.done()))


def test_targets_in_dollars_that_only_their_mean_is_learned_of() -> None:
    (finding,) = judged(recording(3e5, 7e4, left=1.0))
    assert finding.severity is Severity.ERROR
    assert "mean 3e+05" in finding.title
    assert "prediction * std + mean" in finding.fixes[0].code


@pytest.mark.parametrize(("rms", "fires"), [(29.0, False), (31.0, True)])
def test_the_limit_without_a_trial(rms: float, fires: bool) -> None:
    assert bool(judged(recording(0.0, rms, left=1.0))) is fires


@pytest.mark.parametrize(("left", "grade"), [(1.0, Severity.ERROR), (0.7, Severity.WARNING), (0.3, None)])
def test_the_outcome_decides(left: float, grade: Severity | None) -> None:
    assert [f.severity for f in judged(recording(3e5, 7e4, left))] == ([grade] if grade else [])


def test_a_trial_proves_smaller_scales_and_acquits_large_ones() -> None:
    small = recording(0.0, 15.0, left=1.0).arm("scaling/control", [225.0] * 60)
    (finding,) = judged(small.arm("scaling/target", np.geomspace(225, 20, 60)))
    assert finding.certainty is Certainty.PROVEN
    large = recording(3e5, 7e4, left=1.0).arm("scaling/control", [4.9e9] * 60)
    assert judged(large.arm("scaling/target", [4.9e9] * 60)) == []


def test_silent_on_classes_and_on_targets_that_a_model_makes() -> None:
    assert judged(recording(3e5, 7e4, 1.0, family="cross_entropy")) == []
    assert judged(recording(3e5, 7e4, 1.0).facts(moving_target=True)) == []


def test_where_the_input_is_out_of_scale_too_only_both_together_prove_it() -> None:
    build = recording(3e5, 7e4, left=1.0).arm("scaling/control", [4.9e9] * 60)
    build.arm("scaling/target", [4.9e9] * 60).arm("scaling/input", [4.9e9] * 60)
    (finding,) = judged(build.arm("scaling/both", np.geomspace(4.9e9, 4e7, 60)))
    assert finding.certainty is Certainty.PROVEN
    trial = finding.fixes[0].trial
    assert trial is not None
    assert "input and the target" in trial.says
    assert "either alone made no difference" in finding.fixes[0].says
