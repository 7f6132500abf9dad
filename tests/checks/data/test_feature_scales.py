from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.data.feature_scales import FeatureScales
from netdoctor.finding import Certainty, Finding, Severity
from tests.checks.data.facts import facts, learned, reading, rows


def judged(build) -> list[Finding]:
    return list(FeatureScales().judge(build.done()))


def table(*scales: float) -> np.ndarray:
    return np.column_stack([rows(columns=1, std=scale) for scale in scales])


@pytest.mark.parametrize(("ratio", "fires"), [(990.0, False), (1010.0, True)])
def test_the_limit(ratio: float, fires: bool) -> None:
    assert bool(judged(reading(facts(table(0.01, 1.0, 0.01 * ratio))))) is fires


def test_it_names_the_columns_and_scales_each() -> None:
    (finding,) = judged(reading(facts(table(0.01, 1.0, 15.0), name="features")))
    assert finding.severity is Severity.WARNING
    assert "column 2 is of 15" in finding.title
    assert "column 0 of 0.01" in finding.title
    assert "features = (features - mean) / std" in finding.fixes[0].code


def test_sparse_and_constant_columns_have_no_scale() -> None:
    sparse = table(0.01, 1.0, 15.0)
    sparse[: int(0.95 * len(sparse)), 2] = 0.0
    assert judged(reading(facts(sparse))) == []
    constant = table(0.01, 1.0)
    assert judged(reading(facts(np.column_stack([constant, np.full(len(constant), 40.0)])))) == []


def test_silent_where_training_works_or_a_norm_comes_first() -> None:
    assert judged(reading(facts(table(0.01, 15.0)), loss=learned)) == []
    assert judged(reading(facts(table(0.01, 15.0)), before="batch_norm")) == []


def test_columns_of_tiny_spread_around_one_value() -> None:
    """As standardising with one mean and one deviation for all columns leaves them: alike in size, not in spread."""
    narrow = table(0.0011, 1.0) + np.array([3.0, 0.0])
    assert judged(reading(facts(narrow), loss=lambda step: 2.3)) == []
    narrow = table(0.0009, 1.0) + np.array([3.0, 0.0])
    (finding,) = judged(reading(facts(narrow)))
    assert "column 1 is of 1, column 0 of 0.0009" in finding.title


@pytest.mark.parametrize(("left", "fires"), [(0.19, True), (0.21, False)])
def test_a_training_that_works_and_could_do_far_better(left: float, fires: bool) -> None:
    build = reading(facts(table(0.01, 15.0)), loss=learned).arm("scaling/control", np.geomspace(2.3, 1.0, 60))
    tail = float(np.median(np.geomspace(2.3, 1.0, 60)[-12:]))
    found = judged(build.arm("scaling/input", [left * tail] * 60))
    assert [f.certainty for f in found] == [Certainty.MEASURED] * fires


def test_the_trial_proves_or_acquits() -> None:
    build = reading(facts(table(0.01, 15.0))).arm("scaling/control", [2.3] * 60)
    (finding,) = judged(build.arm("scaling/input", np.geomspace(2.3, 0.2, 60)))
    assert finding.certainty is Certainty.PROVEN
    assert judged(build.arm("scaling/input", [2.3] * 60)) == []
