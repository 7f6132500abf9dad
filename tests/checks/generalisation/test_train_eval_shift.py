"""train-eval-shift, at its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdoctor.checks.generalisation.drift import tau
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


def drifting(stds: list[float], means: list[float] | None = None, std: float = 1.0) -> list[Any]:
    """What is found where the training's inputs have these scales, step by step, and the evaluation's have mean 0."""
    build = both(rows(), rows(std=std))
    scales = np.array([means or [0.0] * len(stds), stds]).T
    build.recording.inputs = [facts(rows(), batches=tuple(range(len(stds))), scales=scales)]
    return list(TrainEvalShift().judge(build.done()))


@pytest.mark.parametrize(
    ("stds", "expected"),
    [
        (list(np.linspace(1.0, 1.8, 20)), True),
        (list(np.linspace(1.0, 1.5, 20)), False),  # the medians of three steps at the ends lie 1.42 apart
        (list(np.linspace(1.0, 0.5, 20)), True),
        (list(np.linspace(1.0, 1.8, 11)), False),
        (list(np.linspace(2.0, 1.0, 20)), False),  # towards the evaluation's
        ([1.0, 1.8] * 10, False),  # up and down
        ([1.0] * 8 + list(np.linspace(1.1, 1.9, 14)), True),  # as an epoch without change and then more of them
    ],
)
def test_inputs_that_drift_away_from_the_evaluation(stds, expected):
    found = drifting(stds)
    assert bool(found) is expected
    if expected:
        assert "piles up" in found[0].explanation
        assert found[0].location.line == 9


def test_a_mean_that_drifts():
    assert drifting([1.0] * 20, list(np.linspace(0.0, 0.8, 20)))
    assert not drifting([1.0] * 20, list(np.linspace(0.0, 0.4, 20)))


def test_recordings_of_before_tell_no_drift():
    assert not fires(both(rows(), rows()))


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30, unique=True))
def test_tau_is_kendalls(values):
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    assert tau(np.array(values)) == pytest.approx(sum(1 if b > a else -1 for a, b in pairs) / len(pairs))


@pytest.mark.parametrize(
    ("stds", "expected"),
    [
        ([1.0] * 9 + [4.0] * 3, False),  # a later part of the training had inputs like the evaluation's
        ([1.0] * 9 + [4.0] * 2, True),
        ([1.0] * 12, True),
        ([1.0] * 9 + [16.0] * 3, True),
    ],
)
def test_data_that_a_part_of_the_training_was_given(stds, expected):
    build = both(rows(), rows(std=4.0))
    scales = np.array([[0.0] * len(stds), stds]).T
    build.recording.inputs = [facts(rows(), batches=tuple(range(len(stds))), scales=scales)]
    assert fires(build) is expected


@pytest.mark.parametrize(
    ("move", "loss", "expected"), [(4.1, 10.1, True), (3.9, 10.1, False), (4.1, 9.9, False), (4.1, None, False)]
)
def test_one_column_is_enough_where_the_evaluation_is_far_worse(move, loss, expected):
    given = rows(columns=4)
    given[:, 1] = given[:, 1] / given[:, 1].std() * 1.8
    trained = rows(columns=4)
    build = both(
        trained, given + np.array([0.0, move * trained[:, 1].std() + (trained - given)[:, 1].mean(), 0.0, 0.0])
    )
    build.loss(1.0)
    seen = build.recording.evaluations[0]
    losses = np.empty(0) if loss is None else np.array([2.0, loss])
    build.recording.evaluations = [replace(seen, losses=losses)]
    assert fires(build) is expected
