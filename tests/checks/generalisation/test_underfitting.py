"""underfitting, at its limits."""

from __future__ import annotations

from typing import Any

import pytest

from netdoctor.checks.generalisation.underfitting import Underfitting
from netdoctor.finding import Abstention, Severity
from tests.checks.builders import Builder


def widened(narrow: float, wide: float, *, end: float = 0.9, **facts: Any) -> Builder:
    build = Builder(steps=60).loss(lambda step: end + (1.0 - end) * 0.8**step).facts(loss_lower_bound=0.0, **facts)
    build.linear("body", units=3).linear("head", units=1)
    build.arm("width/as it is", [1.0, narrow], best=narrow)
    return build.arm("width/wider", [1.0, wide], best=wide, layers="body", units=3.0, wider=64.0)


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (widened(0.8, 0.4), True),
        (widened(0.8, 0.41), False),
        (widened(0.25, 0.1), True),
        (widened(0.24, 0.01), False),
        (widened(0.8, 0.3, end=0.5), False),  # the script's own training got further than the copy
        (widened(0.8, 0.2, end=0.5), True),
        (widened(0.8, 0.1, end=0.2), False),
        (widened(0.8, 0.1, moving_target=True), False),
    ],
)
def test_a_wider_copy_that_does_what_this_one_cannot(build, fires):
    found = list(Underfitting().judge(build.done()))
    assert [(f.severity, f.location.module) for f in found] == ([(Severity.WARNING, "body")] if fires else [])


def test_its_trial_counts_training_steps_not_evaluations():
    for facts, steps in (({"steps": 240.0}, 240), ({}, 2)):
        build = widened(0.8, 0.1).arm(
            "width/wider", [1.0, 0.1], best=0.1, layers="body", units=3.0, wider=64.0, **facts
        )
        (found,) = Underfitting().judge(build.done())
        assert found.fixes[0].trial.steps == steps


def test_it_abstains_where_a_copy_could_not_learn():
    build = widened(0.8, 0.1).arm("width/wider", failure="no time was left for it")
    (said,) = Underfitting().judge(build.done())
    assert isinstance(said, Abstention)
    assert list(Underfitting().judge(Builder().done())) == []
