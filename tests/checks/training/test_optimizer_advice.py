"""Advice on optimizers: decay in Adam, plain SGD, a resumed run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from netdoctor.checks.training.adam_l2_weight_decay import AdamL2WeightDecay
from netdoctor.checks.training.resumed_without_optimizer_state import ResumedWithoutOptimizerState
from netdoctor.checks.training.sgd_without_momentum import SgdWithoutMomentum
from netdoctor.finding import Finding, Severity
from netdoctor.recording import SourceLine
from tests.checks.builders import Builder


def said(build: Builder, text: str) -> Builder:
    """The first optimizer with the user's line."""
    held = build.recording.optimizers
    held[0] = replace(held[0], source=SourceLine("train.py", 9, text))
    return build


def decayed(build: Builder) -> list[Finding]:
    return [f for f in AdamL2WeightDecay().judge(build.done()) if f.severity is Severity.ADVICE]


@pytest.mark.parametrize(("decay", "fires"), [(0.0, False), (1e-6, True)])
def test_any_decay_in_adam(decay: float, fires: bool) -> None:
    assert bool(decayed(Builder().linear("0").optimizer("Adam", weight_decay=decay))) is fires


def test_silent_for_decoupled_decay_and_sgd() -> None:
    assert decayed(Builder().linear("0").optimizer("AdamW", weight_decay=0.1)) == []
    assert decayed(Builder().linear("0").optimizer("SGD", weight_decay=0.1)) == []
    assert decayed(Builder().linear("0").optimizer("Adam", weight_decay=0.1, decoupled_weight_decay=True)) == []


def test_the_line_becomes_adamw() -> None:
    build = said(
        Builder().linear("0").optimizer("Adam", weight_decay=0.1), "opt = optim.Adam(net.parameters(), lr=1e-3)"
    )
    assert decayed(build)[0].fixes[0].code == "opt = optim.AdamW(net.parameters(), lr=1e-3)"


def sgd(layers: int = 3, steps: int = 60, end: float = 0.7, **options: float) -> Builder:
    build = Builder(steps=steps)
    for number in range(layers):
        build.linear(str(number))
    build.optimizer("SGD", lr=0.1, **options).facts(loss_lower_bound=0.0)
    return build.loss(lambda step: 1.0 - (1.0 - end) * step / steps)


def plain(build: Builder) -> list[Finding]:
    return list(SgdWithoutMomentum().judge(build.done()))


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (lambda: sgd(2), False),
        (lambda: sgd(3), True),
        (lambda: sgd(steps=49), False),
        (lambda: sgd(steps=50), True),
        (lambda: sgd(momentum=0.9), False),
        (lambda: sgd(end=0.2), False),
        (lambda: sgd(end=1.0), False),
    ],
)
def test_plain_sgd_on_a_deep_model_that_is_slow(build: Callable[[], Builder], fires: bool) -> None:
    assert bool(plain(build())) is fires


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("opt = SGD(net.parameters(), lr=0.1)", "opt = SGD(net.parameters(), lr=0.1, momentum=0.9)"),
        ("opt = SGD([", "optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"),
    ],
)
def test_the_line_gets_a_momentum(text: str, code: str) -> None:
    assert plain(said(sgd(), text))[0].fixes[0].code == code


def resumed(type_: str = "Adam", **facts: bool) -> list[Finding]:
    options = {"beta1": 0.9, "eps": 1e-8} if type_ == "Adam" else {}
    build = Builder().linear("0").optimizer(type_, **options).event(0, "load_state", line=5)
    known = {"optimizer_state_in_checkpoint": True, "pretrained": True, **facts}
    return list(ResumedWithoutOptimizerState().judge(build.facts(**known).done()))


def test_a_checkpoint_whose_optimizer_state_was_left_there() -> None:
    (finding,) = resumed()
    assert finding.location.line == 5
    assert resumed(optimizer_state_loaded=True) == []
    assert resumed(optimizer_state_in_checkpoint=False) == []
    assert resumed(pretrained=False) == []
    assert resumed("SGD") == []
