"""Columns in which a sampled function is held at one value: the ends of a string, the first place of a path."""

from __future__ import annotations

import numpy as np

from netdoctor.data import Array

# Standard deviations of the second and the third column beside a held one, over that of the first. A smooth function
# (a sine series over 32 points: 1.9 and 2.5) grows like the distance, 2 and 3; a random walk like its root, 1.4 and 1.7.
# Both have a margin for coarse grids and noise. Columns that have nothing to do with each other are rarely in such an order.
_SECOND, _THIRD = (1.2, 2.3), (1.35, 3.6)
_FEWEST = 8  # columns: of fewer, three are easily in order by chance


def pinned(constant: Array, std: Array) -> Array:
    """Which of the constant columns are such: on each side that has columns at all, the spread grows with the distance."""
    held = np.zeros(len(constant), dtype=bool)
    if len(constant) < _FEWEST:
        return held
    edges = np.flatnonzero(np.diff(np.concatenate([[0], constant.astype(int), [0]])))
    for first, end in edges.reshape(-1, 2):
        sides = [std[end : end + 3], std[max(0, first - 3) : first][::-1]]
        held[first:end] = all(_grows(side) for side in sides if side.size)
    return held


def _grows(side: Array) -> bool:
    if side.size < 3 or side[0] <= 0:
        return False
    second, third = side[1] / side[0], side[2] / side[0]
    return bool(_SECOND[0] <= second <= _SECOND[1] and _THIRD[0] <= third <= _THIRD[1] and third > second)
