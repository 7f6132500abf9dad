"""Which axis a view tears apart: judged by shapes, checked against what the numbers do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdoctor.checks.structure.axes import code, moved


@pytest.mark.parametrize(
    ("shape", "made", "axes"),
    [
        ((8, 5, 3), (5, 8, 3), (0, 1)),  # time first
        ((32, 8, 6), (32, 6, 8), (1, 2)),  # channels last
        ((8, 2, 6, 8), (8, 6, 16), (2, 1)),  # heads merged without a transposition
        ((8, 6, 16), (8, 2, 6, 8), (1, 2)),  # and split without one
        ((2, 8, 5), (8, 10), (1, 0)),  # the directions of an LSTM side by side
        ((4, 3, 32, 16), (4, 32, 16, 3), (2, 1)),
    ],
)
def test_torn(shape: tuple[int, ...], made: tuple[int, ...], axes: tuple[int, int]) -> None:
    assert moved(shape, made) == axes


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ((5, 8, 16), (40, 16)),
        ((40, 16), (5, 8, 16)),
        ((8, 16, 4, 4), (8, 256)),
        ((8, 6, 16), (8, 6, 2, 8)),  # heads, to be transposed next
        ((16, 16, 16), (16, 64, 4)),  # torch's own heads over the batch, with as many samples as numbers in a head
        ((8, 64, 8), (8, 8, 8, 8)),  # tokens back to an image
        ((8, 64), (8, 4, 4, 4)),
        ((4, 3, 16, 16), (4, 3, 4, 4, 4, 4)),  # patches
        ((9, 4, 4, 2, 2), (9, 16, 4)),  # patches as long as their grid is wide: neighbours are merged
        ((4, 32, 8, 8), (4, 8, 256)),  # groups
        ((1, 8, 5), (8, 5)),
        ((8, 1, 28, 28), (8, 28, 28)),
        ((6, 6), (6, 6)),
        ((32, 6), (6, 32)),
    ],
)
def test_in_order(shape: tuple[int, ...], made: tuple[int, ...]) -> None:
    assert moved(shape, made) is None


@given(st.lists(st.integers(1, 7), min_size=2, max_size=5), st.data())
def test_merging_neighbours_and_splitting_again_tears_nothing(shape: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(shape) - 2))
    merged = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
    assert moved(shape, merged) is None
    assert moved(merged, shape) is None


@given(st.lists(st.integers(2, 7), min_size=3, max_size=4, unique=True), st.data())
def test_two_neighbours_of_unequal_size_that_change_places_are_torn(shape: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(shape) - 2))
    made = [*shape[:at], shape[at + 1], shape[at], *shape[at + 2 :]]
    found = moved(shape, made)
    assert found is not None
    assert sorted(found) == [at, at + 1]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    assert not np.array_equal(numbers.reshape(made), numbers.swapaxes(at, at + 1))


@pytest.mark.parametrize(
    ("text", "shape", "made", "fixed"),
    [
        ("x = x.view(t, b, f)", (8, 5, 3), (5, 8, 3), "x = x.transpose(0, 1)"),
        ("out = out.reshape(b, n, c)", (8, 2, 6, 8), (8, 6, 16), "out = out.transpose(1, 2).reshape(b, n, c)"),
        ("h = h.view(h.size(1), -1)", (2, 8, 5), (8, 10), "h = h.transpose(0, 1).reshape(h.size(1), -1)"),
        ("q = q.view(b, h, n, d) * s", (8, 6, 16), (8, 2, 6, 8), "q = q.view(b, n, h, d).transpose(1, 2) * s"),
        ("q = rearranged(q)", (8, 2, 6, 8), (8, 6, 16), "x = x.transpose(1, 2).reshape(...)"),
    ],
)
def test_the_line_with_the_transposition(text: str, shape: tuple[int, ...], made: tuple[int, ...], fixed: str) -> None:
    axes = moved(shape, made)
    assert axes is not None
    assert code(text, shape, made, axes) == fixed
