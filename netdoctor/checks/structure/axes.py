"""Which axis of a tensor a view or reshape tears apart, where swapping axes was meant."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

RESHAPING = frozenset({"view", "reshape"})
_CALL = re.compile(r"\.(?:view|reshape)\(((?:[^()]|\([^()]*\))*)\)")


def moved(given: Sequence[int], made: Sequence[int]) -> tuple[int, int] | None:
    """(axis of `given`, axis of `made`): of one size, at another place in the row of numbers; None where all is in order.

    A view only cuts the same row of numbers at other places, so an axis that lives on in the result keeps its stride, an
    axis that is split makes axes within its span, and merged axes are new. An axis of the result that has the size of a
    lost one and reaches over the borders of the given ones is none of these: it was meant to be that lost axis. Matrices
    that stay matrices are left alone: a table of other proportions is often just that.
    """
    if math.prod(given) != math.prod(made) or max(len(given), len(made)) < 3:
        return None
    before, after = _spans(given), _spans(made)
    borders = {border for span in before for border in span}
    lost = [(at, span) for at, span in enumerate(before) if span not in after and given[at] > 1]
    whole = [span[0] in borders and span[1] in borders for span in after]  # axes that are kept, or merged as they are
    new = [(at, span) for at, span in enumerate(after) if not whole[at] and made[at] > 1]
    pairs = [
        (one, other)
        for one, _ in lost
        for other, span in new
        if given[one] == made[other] and not any(low <= span[0] and span[1] <= high for low, high in before)
    ]
    return min(pairs, key=lambda pair: (pair[1] > pair[0], pair)) if pairs else None


def _spans(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Per axis its stride, and that times its size."""
    strides = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
    return [(stride, stride * size) for stride, size in zip(strides, shape, strict=True)]


def swapped(given: Sequence[int], made: Sequence[int], axes: tuple[int, int]) -> bool:
    """Whether a transposition of `axes` alone gives the sizes that were wanted."""
    sizes = list(given)
    if max(axes) >= len(sizes):
        return False
    sizes[axes[0]], sizes[axes[1]] = sizes[axes[1]], sizes[axes[0]]
    return sizes == list(made)


def code(text: str, given: Sequence[int], made: Sequence[int], axes: tuple[int, int]) -> str:
    """The user's line with the transposition that was meant; in general words where the line cannot be rewritten."""
    low, high = sorted(axes)
    turn, call = f".transpose({low}, {high})", _CALL.search(text)
    if swapped(given, made, axes):
        return _CALL.sub(turn, text, count=1) if call else f"x = x{turn}"
    if axes[1] < axes[0]:
        return (
            text[: call.start()] + turn + ".reshape(" + text[call.start(1) :] if call else f"x = x{turn}.reshape(...)"
        )
    sizes = call[1].split(",") if call and "(" not in call[1] else []
    if call is None or len(sizes) != len(made):
        return f"x = x.reshape(...){turn}  # with the sizes {low} and {high} the other way round"
    sizes[low], sizes[high] = sizes[high], sizes[low]
    return f"{text[: call.start(1)]}{', '.join(size.strip() for size in sizes)}){turn}{text[call.end() :]}"
