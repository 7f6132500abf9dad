"""input-outliers, sensitive-loss and padding-share, at their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdoctor.checks.data.input_outliers import InputOutliers
from netdoctor.checks.data.padding_share import PaddingShare
from netdoctor.checks.data.sensitive_loss import SensitiveLoss
from netdoctor.finding import Severity
from tests.checks.builders import Builder
from tests.checks.data.facts import facts, reading, rows


def with_outlier(robust: float, count: int = 400) -> np.ndarray:
    """Columns of which one holds a value this many robust deviations from its median."""
    values = rows(count=count)
    rest = values[1:, 2]
    spread = 1.4826 * np.median(np.abs(rest - np.median(rest)))
    values[0, 2] = np.median(rest) + robust * spread
    return values


def grades(check: Any, build: Builder) -> list[Severity]:
    return [item.severity for item in check.judge(build.done())]


@pytest.mark.parametrize(
    ("values", "fires"),
    [
        (with_outlier(102), True),
        (with_outlier(-102), True),
        (with_outlier(98), False),
        (with_outlier(500, count=200), True),
        (with_outlier(500, count=199), False),
        (np.round(1000 * with_outlier(500)), False),
        (rows(), False),
        (with_outlier(500) * 1e-5 + 1, False),  # as good as constant
    ],
)
def test_values_far_out(values, fires):
    assert grades(InputOutliers(), reading(facts(values))) == ([Severity.ADVICE] if fires else [])


def test_outliers_before_a_norm_are_left_alone_and_the_fix_names_the_range():
    assert grades(InputOutliers(), reading(facts(with_outlier(500)), after="batch_norm")) == []
    (found,) = InputOutliers().judge(reading(facts(with_outlier(500))).done())
    assert found.places == ("column 2",)
    assert "x.clamp(" in found.fixes[0].code


def regression(values: np.ndarray, family: str = "mse") -> Builder:
    build = Builder().facts(loss_family=family)
    build.recording.targets = [facts(values[:, None], name="mse_loss")]
    return build


def heavy(size: float, number: int = 20, count: int = 400) -> np.ndarray:
    values = np.random.default_rng(2).standard_normal(count)
    values[:number] = size
    return values


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (regression(heavy(25.0)), True),
        (regression(heavy(15.0)), False),  # not far enough out
        (regression(heavy(25.0, number=1)), False),  # too few to widen the deviation
        (regression(heavy(25.0, count=200)), True),
        (regression(heavy(25.0, count=199)), False),
        (regression(heavy(25.0), "l1"), False),
        (regression(np.zeros(400)), False),
    ],
)
def test_squared_errors_of_a_few(build, fires):
    assert grades(SensitiveLoss(), build) == ([Severity.ADVICE] if fires else [])


def padded(share: float, length: int = 20, largest: int = 30, left: bool = False) -> Builder:
    random = np.random.default_rng(3)
    tokens = random.integers(1, largest + 1, (400, length)).astype(np.float64)
    kept = np.linspace(0.05, 2 * (1 - share) - 0.05, 400) * length
    mask = np.arange(length)[None, :] >= np.round(kept)[:, None]
    tokens[mask[:, ::-1] if left else mask] = 0
    build = Builder()
    build.recording.inputs = [facts(tokens, dtype="int64")]
    return build


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (padded(0.52), True),
        (padded(0.52, left=True), True),
        (padded(0.48), False),
        (padded(0.6, length=4), True),
        (padded(0.6, length=3), False),
        (padded(0.6, largest=1), False),
    ],
)
def test_tokens_that_mean_nothing(build, fires):
    assert grades(PaddingShare(), build) == ([Severity.ADVICE] if fires else [])


def test_sparse_counts_are_no_padding():
    counts = np.where(np.random.default_rng(4).random((400, 20)) < 0.7, 0.0, 5.0)
    build = Builder()
    build.recording.inputs = [facts(counts, dtype="int64")]
    assert grades(PaddingShare(), build) == []
