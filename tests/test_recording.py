"""What the values of a recording can do by themselves, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Series, Track, median, shared

STEPS = st.sets(st.integers(0, 60)).map(lambda found: np.array(sorted(found), np.int64))


@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=40))
def test_the_median_is_numpys(values: list[float]) -> None:
    assert median(np.array(values)) == pytest.approx(float(np.median(values)), rel=1e-12)


@pytest.mark.parametrize("values", [[], [1.0, np.nan, 2.0]])
def test_the_median_of_nothing_or_of_a_nan_is_nan(values: list[float]) -> None:
    assert np.isnan(median(np.array(values, np.float64)))


@given(STEPS, STEPS)
def test_shared_steps_with_the_values_of_either(one: np.ndarray, other: np.ndarray) -> None:
    steps, left, right = shared(Track(one, one * 2.0), Series(other, other * 3.0))
    assert steps.tolist() == sorted(set(one.tolist()) & set(other.tolist()))
    assert left.tolist() == (steps * 2.0).tolist()
    assert right.tolist() == (steps * 3.0).tolist()


def _operation(index: int, inputs: tuple[int, ...]) -> Operation:
    return Operation(index, "add", "", "", inputs, (index + 10,))


def test_readers_of_a_value_are_known_anew_when_operations_come_or_change() -> None:
    graph = StepGraph([_operation(0, (1, 1, 2))])
    assert [o.index for o in graph.consumers(1)] == [0]
    graph.operations.append(_operation(1, (1,)))
    assert [o.index for o in graph.consumers(1)] == [0, 1]
    graph.operations = [_operation(5, (2,)), _operation(6, (3,))]
    assert graph.consumers(1) == []
    assert [o.index for o in graph.consumers(2)] == [5]
    assert graph == StepGraph(list(graph.operations))
