"""Statistics of many float32 tensors on the CPU at once: a call costs more than reading the few thousand numbers of most."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture.statistics import (
    CANCELS,
    FEATURES,
    MAX_UNITS,
    NORMAL_SQUARES,
    SAMPLES,
    Moments,
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
    flat = stacked.reshape(many, samples, -1)
    whole, sums = flat.reshape(many, -1), flat.sum(1)
    columns = [torch.linalg.vector_norm(whole, dim=1), sums.sum(1), torch.linalg.vector_norm(sums, dim=1)]
    columns += [whole.amin(1), whole.amax(1)] if extremes else []
    numbers = torch.stack(columns).numpy().astype(np.float64)
    squares = numbers[0] ** 2
    with np.errstate(invalid="ignore"):
        apart = squares - numbers[2] ** 2 / samples
        spreads = np.sqrt(np.maximum(apart, 0.0) / whole.shape[1])
        alike = np.flatnonzero(~(apart > CANCELS * squares) | ~(squares > NORMAL_SQUARES[0]))
    if alike.size:
        spreads[alike] = _spreads(flat[torch.from_numpy(alike)])
    moments = [
        _moments(*given, extremes)
        for given in zip(values, squares.tolist(), np.delete(numbers, (0, 2), axis=0).T.tolist(), strict=True)
    ]
    return moments, spreads.tolist(), sums.reshape(many, *stacked.shape[2:]).numpy()


def _moments(values: Tensor, square: float, numbers: list[float], extremes: bool) -> Moments:
    if not NORMAL_SQUARES[0] < square < NORMAL_SQUARES[1]:
        return Moments(values.numel(), *quick_moments(values)) if extremes else brief_moments(values, mean=True)
    low, high = numbers[1:] if extremes else (0.0, 0.0)
    return Moments(values.numel(), numbers[0], square, low, high, 1.0, 3 if extremes else 2)


def _spreads(flat: Tensor, dtype: torch.dtype | None = None) -> FloatArray:
    """The spreads of batches (batches, samples, features) by the differences from their first samples: see `batch_spread`."""
    rows = flat[:, :SAMPLES, :: max(1, math.ceil(flat.shape[2] / FEATURES))]
    apart = rows - rows[:, :1]
    parts = apart.flatten(1), apart.sum(1)
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1, dtype=dtype) for part in parts])
    squares = norms.numpy().astype(np.float64) ** 2
    count = rows.shape[1]
    with np.errstate(invalid="ignore"):
        found: FloatArray = (squares[0] / count - squares[1] / count**2) / rows.shape[2]
        spreads = np.sqrt(np.where(found < 0, 0.0, found))
    odd = np.flatnonzero(~((NORMAL_SQUARES[0] < squares[0]) & (squares[0] < NORMAL_SQUARES[1])))
    if odd.size and dtype is None:
        spreads[odd] = _spreads(flat[torch.from_numpy(odd)], torch.float64)
    return spreads


def whole(tensors: list[Tensor]) -> list[Moments]:
    """All moments of any tensors, those of one shape by the same kernels."""
    groups: dict[torch.Size, list[int]] = {}
    for at, tensor in enumerate(tensors):
        groups.setdefault(tensor.shape, []).append(at)
    found: dict[int, Moments] = {}
    for members in groups.values():
        if len(members) == 1 or tensors[members[0]].numel() > SMALL:
            found |= {at: Moments(tensors[at].numel(), *quick_moments(tensors[at])) for at in members}
            continue
        flat = torch.stack([tensors[at] for at in members]).reshape(len(members), -1)
        norms, ends = torch.linalg.vector_norm(flat, dim=1), [flat.amin(1), flat.amax(1)]
        numbers = torch.stack([flat.sum(1), *ends]).numpy().astype(np.float64).T.tolist()
        squares = (norms.numpy().astype(np.float64) ** 2).tolist()
        for at, square, given in zip(members, squares, numbers, strict=True):
            found[at] = _moments(tensors[at], square, given, extremes=True)
    return [found[at] for at in range(len(tensors))]


def matrices(gradients: list[Tensor]) -> list[Rows]:
    """What one kernel tells of each weight's gradient, of at least two dimensions: see `Rows`."""
    norms, starts = _joined([_row_norms(gradient) for gradient in gradients])
    with np.errstate(invalid="ignore"):
        squares = np.add.reduceat(norms * norms, starts).tolist()
    found = []
    for gradient, start, square in zip(gradients, starts.tolist(), squares, strict=True):
        rows = norms[start : start + gradient.shape[0]]
        found.append(
            _rows(gradient, rows, square) if NORMAL_SQUARES[0] < square < NORMAL_SQUARES[1] else _in_double(gradient)
        )
    return found


def changes(before: Tensor, after: Tensor, sizes: list[int]) -> list[float]:
    """The root mean square of `after - before` over each of the pieces of these sizes, which lie one behind the other."""
    apart = (after - before).numpy().astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int64)
    with np.errstate(invalid="ignore"):
        means: FloatArray = np.sqrt(np.add.reduceat(apart * apart, starts) / np.asarray(sizes))
    return [float(mean) for mean in means]


def _rows(gradient: Tensor, norms: FloatArray, square: float) -> Rows:
    """From the norms of the rows in single precision, in which the squares of some may have vanished."""
    idle = (norms[:MAX_UNITS] == 0).astype(np.float64)
    if idle.any():
        where = np.flatnonzero(idle)
        idle[where] = _row_norms(gradient[torch.from_numpy(where)], torch.float64).numpy() == 0
    return Rows(Moments(gradient.numel(), 0.0, square, 0.0, 0.0, 1.0, 1), idle)


def _in_double(gradient: Tensor) -> Rows:
    """The same where the squares of all vanish or overflow, or are no numbers."""
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
    starts = np.cumsum([0, *(len(tensor) for tensor in tensors[:-1])]).astype(np.int64)
    return values, starts
