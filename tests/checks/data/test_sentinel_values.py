from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.data.sentinel_values import SentinelValues
from netdoctor.finding import Finding, Severity
from tests.checks.data.facts import facts, learned, reading


def judged(rows: np.ndarray, **loss: object) -> list[Finding]:
    return list(SentinelValues().judge(reading(facts(rows), **loss).done()))


def table(code: float, count: int, size: int = 1000) -> np.ndarray:
    """Standard normal columns, with a code in the last one."""
    values = np.random.default_rng(0).standard_normal((size, 3)).clip(-3, 3)
    values[:count, 2] = code
    return values


def test_a_code_is_named_with_its_column() -> None:
    (finding,) = judged(table(-999.0, 20))
    assert finding.severity is Severity.WARNING
    assert "column 2 of the input holds -999" in finding.title
    assert "x == -999" in finding.fixes[0].code
    assert finding.places == ("column 2",)


@pytest.mark.parametrize(("count", "size", "fires"), [(2, 1000, False), (3, 1000, True), (3, 3010, False)])
def test_how_often(count: int, size: int, fires: bool) -> None:
    assert bool(judged(table(-999.0, count, size))) is fires


@pytest.mark.parametrize(("code", "fires"), [(-9.0, True), (-1.0, False), (30.0, False)])
def test_how_far(code: float, fires: bool) -> None:
    assert bool(judged(table(code, 20))) is fires


def test_clipped_and_binary_columns_and_repeated_samples_are_fine() -> None:
    assert judged(np.random.default_rng(0).standard_normal((1000, 3)).clip(-2, 2)) == []
    assert judged((np.random.default_rng(0).random((1000, 3)) < 0.01).astype(float)) == []
    one_outlier = table(-999.0, 1, 100)
    assert judged(np.tile(one_outlier, (10, 1))) == []


def test_a_training_that_works_makes_it_advice() -> None:
    (finding,) = judged(table(-999.0, 20), loss=learned)
    assert finding.severity is Severity.ADVICE
