"""Statistics of many float32 tensors on the CPU at once: a call costs more than reading the few thousand numbers of most."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture.statistics import (
    MAX_UNITS,
    NORMAL_SQUARES,
    RAISED,
    Moments,
    batch_spread,
    brief_moments,
    quick_moments,
)

FloatArray = NDArray[np.float64]
SMALL = (
    65_536  # numbers of a tensor (0.25 MB) above which the kernels cost more than the calls, and a copy more than both
)


class Rows(NamedTuple):
    """What one kernel tells of a weight's gradient: its moments without sum and extremes, and which rows (units) have one: 1 for
    each that is exactly zero. Shape (units,), at most `MAX_UNITS`."""

    moments: Moments
    idle: FloatArray


def vectors(tensors: list[Tensor]) -> list[Moments]:
    """All moments of 1-dimensional tensors of at least one entry (biases, scales), in double precision."""
    values, starts = _joined(tensors)
    with np.errstate(invalid="ignore"):  # Inf - Inf
        totals, squares = np.add.reduceat(values, starts), np.add.reduceat(values * values, starts)
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    columns = zip(tensors, totals.tolist(), squares.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [Moments(tensor.numel(), *numbers) for tensor, *numbers in columns]


def batches(values: list[Tensor], extremes: bool) -> tuple[list[Moments], list[float], NDArray[np.float32]]:
    """Of batches of outputs, all of one shape with at least two samples along dimension 0: the moments of each, with `extremes` all
    of them; its spread over the batch, as `batch_spread` has it; and its sums over the batch, of shape (batches, *one sample)."""
    stacked = torch.stack(values)
    many, samples = stacked.shape[:2]
    flat = stacked.view(many, samples, -1)
    ends = torch.stack([flat.amin((1, 2)), flat.amax((1, 2))]).tolist() if extremes else []
    # Everything is told from the differences to the first sample: nothing cancels where all samples are nearly alike.
    first = flat[:, 0].clone()
    apart = flat.sub_(first[:, None])
    norms, sums = torch.linalg.vector_norm(apart.view(many, -1), dim=1), apart.sum(1)
    base, moved, squares = first.numpy(), sums.numpy(), norms.numpy().astype(np.float64) ** 2
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf
        whole = moved + samples * base
        totals, off = whole.sum(1).tolist(), np.einsum("ij,ij->i", moved, moved)
        spreads = np.sqrt(np.maximum(squares - off / samples, 0.0) / apart[0].numel())
        both = np.einsum("ij,ij->i", base, whole + moved) + squares
    size = values[0].numel()
    usual = (NORMAL_SQUARES[0] < both) & (both < NORMAL_SQUARES[1])
    if not extremes and usual.all():
        moments = [
            Moments(size, total, square, 0.0, 0.0, 1.0, 2) for total, square in zip(totals, both.tolist(), strict=True)
        ]
    else:
        lows, highs = ends if extremes else ([0.0] * many, [0.0] * many)
        told = zip(values, both.tolist(), totals, lows, highs, strict=True)
        moments = [_moments(each, square, numbers, extremes) for each, square, *numbers in told]
    apart_usual = (NORMAL_SQUARES[0] < squares) & (squares < NORMAL_SQUARES[1])
    for at in np.flatnonzero(~apart_usual & ~((squares == 0) & usual)).tolist():
        spreads[at] = batch_spread(values[at].double())
    return moments, spreads.tolist(), whole.reshape(many, *stacked.shape[2:])


def _moments(values: Tensor, square: float, numbers: list[float], extremes: bool) -> Moments:
    if not NORMAL_SQUARES[0] < square < NORMAL_SQUARES[1]:
        return Moments(values.numel(), *quick_moments(values)) if extremes else brief_moments(values, mean=True)
    return Moments(values.numel(), numbers[0], square, numbers[1], numbers[2], 1.0, 3 if extremes else 2)


def whole(tensors: list[Tensor]) -> list[Moments]:
    """All moments of any tensors, those of one shape by the same kernels."""
    found: dict[int, Moments] = {}
    for members in _alike(tensors):
        if len(members) == 1:
            found[members[0]] = Moments(tensors[members[0]].numel(), *quick_moments(tensors[members[0]]))
            continue
        flat = torch.stack([tensors[at] for at in members]).reshape(len(members), -1)
        norms, ends = torch.linalg.vector_norm(flat, dim=1), [flat.amin(1), flat.amax(1)]
        numbers = torch.stack([flat.sum(1), *ends]).numpy().astype(np.float64).T.tolist()
        squares = (norms.numpy().astype(np.float64) ** 2).tolist()
        for at, square, given in zip(members, squares, numbers, strict=True):
            found[at] = _moments(tensors[at], square, given, extremes=True)
    return [found[at] for at in range(len(tensors))]


def scales(tensors: list[Tensor], vanished: list[bool]) -> list[Moments]:
    """The moments of many float tensors on the CPU without sums and extremes, those of one shape by the same kernels. Of those
    that `vanished` the squares most likely do so in single precision."""
    squares = [0.0] * len(tensors)
    odd = _squared(squares, tensors, [at for at, small in enumerate(vanished) if not small])
    odd = _squared(squares, tensors, odd + [at for at, small in enumerate(vanished) if small], RAISED)
    _squared(squares, tensors, odd, dtype=torch.float64)
    return [
        Moments(tensor.numel(), 0.0, square, 0.0, 0.0, 1.0, 1)
        if math.isfinite(square)
        else Moments(tensor.numel(), *quick_moments(tensor))
        for tensor, square in zip(tensors, squares, strict=True)
    ]


def _squared(
    squares: list[float], tensors: list[Tensor], asked: list[int], raised: float = 1.0, dtype: torch.dtype | None = None
) -> list[int]:
    """Fill in the sums of squares of those that are asked for; gives those whose squares vanish or overflow on the way."""
    if not asked:
        return []
    given = [tensors[at] for at in asked]
    norms = torch.stack(torch._foreach_norm(given, 2, dtype)).tolist() if raised == 1 else _raised(given, raised)
    odd = []
    for at, norm in zip(asked, norms, strict=True):
        squares[at] = (norm / raised) ** 2
        if not NORMAL_SQUARES[0] < norm * norm < NORMAL_SQUARES[1]:
            odd.append(at)
    return odd


def _raised(tensors: list[Tensor], by: float) -> list[float]:
    """The 2-norms of `by` times these tensors. One product for a copy of all of one shape costs a fifth of one for each."""
    norms = [0.0] * len(tensors)
    for members in _alike(tensors):
        stacked = torch.stack([tensors[at] for at in members]).mul_(by).view(len(members), -1)
        for at, norm in zip(members, torch.linalg.vector_norm(stacked, dim=1).tolist(), strict=True):
            norms[at] = norm
    return norms


def _alike(tensors: list[Tensor]) -> list[list[int]]:
    """Where those of one shape stand, each for itself that is too large to be copied."""
    groups: dict[torch.Size | int, list[int]] = {}
    for at, tensor in enumerate(tensors):
        groups.setdefault(tensor.shape if tensor.numel() <= SMALL else at, []).append(at)
    return list(groups.values())


Past = tuple[
    bool, FloatArray | None
]  # of a gradient in the step before: did its squares vanish, and which rows were idle


def matrices(gradients: list[Tensor], before: list[Past]) -> list[Rows]:
    """What one kernel tells of each weight's gradient, of at least two dimensions: see `Rows`.

    Of those that vanished in the step before the squares do so again, most likely: numbers so small that a processor takes a
    hundred times as long over them. And a row that was idle, and whose squares are zero again, is not asked again.
    """
    usual = [at for at, (vanished, _) in enumerate(before) if not vanished]
    told = _usual([gradients[at] for at in usual], [before[at][1] for at in usual]) if usual else []
    found = dict(zip(usual, told, strict=True))
    odd = [at for at in range(len(gradients)) if found.get(at) is None]
    rest = _vanishing([gradients[at] for at in odd], [before[at][1] for at in odd])
    others = dict(zip(odd, rest, strict=True))
    return [others[at] if (rows := found.get(at)) is None else rows for at in range(len(gradients))]


def _usual(gradients: list[Tensor], before: list[FloatArray | None]) -> list[Rows | None]:
    """The same; None where the squares vanish or overflow, or are no numbers."""
    norms, starts = _joined([_row_norms(gradient) for gradient in gradients])
    with np.errstate(invalid="ignore"):
        squares = np.add.reduceat(norms * norms, starts).tolist()
    idle = (norms == 0).astype(np.float64)
    asked = bool(idle.any())
    found: list[Rows | None] = []
    for gradient, was, start, square in zip(gradients, before, starts.tolist(), squares, strict=True):
        rows = idle[start : start + min(MAX_UNITS, gradient.shape[0])]
        if not NORMAL_SQUARES[0] < square < NORMAL_SQUARES[1]:
            found.append(None)
            continue
        found.append(Rows(Moments(gradient.numel(), 0.0, square, 0.0, 0.0, 1.0, 1), rows))
        if asked:
            _ask_in_full(gradient, rows, was)
    return found


def changes(before: Tensor, after: Tensor, sizes: NDArray[np.int64]) -> list[float]:
    """The root mean square of `after - before` over each of the pieces of these sizes, which lie one behind the other."""
    apart = (after - before).numpy().astype(np.float64)
    starts = sizes.cumsum() - sizes
    with np.errstate(invalid="ignore"):
        means: list[float] = np.sqrt(np.add.reduceat(apart * apart, starts) / sizes).tolist()
    return means


def _ask_in_full(gradient: Tensor, idle: FloatArray, before: FloatArray | None) -> None:
    """Which of the rows whose squares are all zero are zero themselves: `idle` is set right."""
    if before is not None and idle.tobytes() == before.tobytes():
        return
    new = idle > before if before is not None and before.shape == idle.shape else idle
    where = np.flatnonzero(new)
    if where.size:
        rows = gradient[torch.from_numpy(where)].flatten(1)
        idle[where] = torch.linalg.vector_norm(rows, math.inf, dim=1).numpy() == 0


def _vanishing(gradients: list[Tensor], before: list[FloatArray | None]) -> list[Rows]:
    """The same of gradients whose squares vanish in single precision, those of one shape at once; in double what else they are."""
    groups: dict[torch.Size, list[int]] = {}
    for at, gradient in enumerate(gradients):
        groups.setdefault(gradient.shape, []).append(at)
    found: dict[int, Rows] = {}
    for shape, members in groups.items():
        stacked = torch.stack([gradients[at] for at in members]).mul_(RAISED).view(len(members), shape[0], -1)
        norms = torch.linalg.vector_norm(stacked, dim=2).numpy().astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            squares = (norms * norms).sum(1).tolist()
        for at, square, row in zip(members, squares, norms[:, :MAX_UNITS] == 0, strict=True):
            if not NORMAL_SQUARES[0] < square < NORMAL_SQUARES[1]:
                found[at] = _in_double(gradients[at])
                continue
            idle = row.astype(np.float64)
            found[at] = Rows(Moments(gradients[at].numel(), 0.0, square / RAISED**2, 0.0, 0.0, 1.0, 1), idle)
            _ask_in_full(gradients[at], idle, before[at])
    return [found[at] for at in range(len(gradients))]


def _in_double(gradient: Tensor) -> Rows:
    """The same where the squares of all vanish even so, or overflow, or are no numbers."""
    norms = _row_norms(gradient, torch.float64).numpy()
    square, idle = float(np.dot(norms, norms)), (norms[:MAX_UNITS] == 0).astype(np.float64)
    if math.isfinite(square):
        return Rows(Moments(gradient.numel(), 0.0, square, 0.0, 0.0, 1.0, 1), idle)
    return Rows(Moments(gradient.numel(), *quick_moments(gradient)), idle)


def _row_norms(gradient: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradient.reshape(gradient.shape[0], -1), dim=1, dtype=dtype)
    return norms


def _joined(tensors: list[Tensor]) -> tuple[FloatArray, NDArray[np.int64]]:
    """All entries of 1-dimensional tensors behind each other, and where each of them begins."""
    values: FloatArray = (
        torch.cat(tensors).numpy().astype(np.float64)
    )  # a copy: a tensor that numpy saw cannot be resized
    starts = np.cumsum([0, *[tensor.numel() for tensor in tensors[:-1]]]).astype(np.int64)
    return values, starts
