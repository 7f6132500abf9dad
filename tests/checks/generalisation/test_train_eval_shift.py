"""train-eval-shift, at its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdoctor.checks.generalisation.train_eval_shift import TrainEvalShift
from netdoctor.data import Evaluation
from netdoctor.finding import Finding
from tests.checks.builders import Builder
from tests.checks.data.facts import facts, rows


def both(trained: np.ndarray, given: np.ndarray, **fields: Any) -> Builder:
    build = Builder()
    build.recording.inputs = [facts(trained)]
    seen = (facts(given, **fields),)
    build.recording.evaluations = [Evaluation(np.arange(2), np.ones(2), 2, 8, inputs=seen, file="train.py", line=5)]
    return build


def fires(build: Builder) -> bool:
    found = [item for item in TrainEvalShift().judge(build.done()) if isinstance(item, Finding)]
    assert len(found) <= 1
    return bool(found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (rows(std=3.01), True),
        (rows(std=2.9), False),
        (rows(std=0.33), True),
        (rows(std=0.35), False),
        (rows(mean=4.2), True),
        (rows(mean=3.8), False),
        (rows(std=255.0, count=64), True),
        (rows(std=255.0, count=63), False),
        (rows(std=5.0, columns=3), False),
    ],
)
def test_scale_and_mean(given, expected):
    assert fires(both(rows(), given)) is expected


@pytest.mark.parametrize(("columns", "expected"), [(1, False), (3, True)])
def test_half_of_the_columns(columns, expected):
    given = rows()
    given[:, :columns] *= 10
    assert fires(both(rows(), given)) is expected


def test_tokens_and_moving_targets_are_left_alone():
    build = both(rows(), rows(std=10.0))
    assert not fires(build.facts(moving_target=True))
    tokens = both(rows(), np.round(rows(std=100.0)))
    tokens.recording.inputs = [facts(np.round(rows(std=5.0)), dtype="int64")]
    assert not fires(tokens)


def test_it_points_at_the_evaluation():
    (found,) = TrainEvalShift().judge(both(rows(), rows(std=255.0), line=31).done())
    assert found.location.line == 31
