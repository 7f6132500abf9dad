"""Signals and images that a model reads as a sequence of patches: how long that sequence is, and how to permute it."""

from __future__ import annotations

import math

from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def patch_size(module: nn.Module, given: Tensor) -> tuple[int, ...] | None:
    """The size of the patches that a model cuts (batch, channels, *sizes) into; None when it does not seem to cut it.

    Told by the first convolution of these channels, where its stride is its kernel; else by a dense layer that takes
    all numbers of a square patch.
    """
    if given.dim() not in (3, 4) or not given.is_floating_point():
        return None
    channels, sizes = given.shape[1], tuple(given.shape[2:])
    for child in module.modules():
        if isinstance(child, _CONVOLUTIONS) and child.in_channels == channels and len(child.kernel_size) == len(sizes):
            kernel = tuple(child.kernel_size)
            return kernel if _cuts(child) and _fits(kernel, sizes) else None
        if isinstance(child, nn.Linear) and len(sizes) == 2:
            side = math.isqrt(child.in_features // channels)
            square = (side, side)
            return square if channels * side * side == child.in_features and _fits(square, sizes) else None
    return None


def _cuts(child: nn.Conv1d | nn.Conv2d) -> bool:
    return tuple(child.stride) == tuple(child.kernel_size) and not any(p for p in child.padding if p != "valid")


def _fits(kernel: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    cut = all(size % width == 0 for size, width in zip(sizes, kernel, strict=True))
    return cut and math.prod(kernel) > 1 and math.prod(sizes) > math.prod(kernel)


def grid(given: Tensor, patch: tuple[int, ...]) -> tuple[int, ...]:
    """How many patches there are along each size."""
    return tuple(size // width for size, width in zip(given.shape[2:], patch, strict=True))


def permuted(given: Tensor, patch: tuple[int, ...], permutation: Tensor) -> Tensor:
    """The patches of (batch, channels, *sizes) in another order; `permutation` counts them row by row."""
    batch, channels = given.shape[:2]
    cells = grid(given, patch)
    if len(patch) == 1:
        return given.reshape(batch, channels, cells[0], patch[0]).index_select(2, permutation).reshape(given.shape)
    rows = given.reshape(batch, channels, cells[0], patch[0], cells[1], patch[1]).permute(0, 2, 4, 1, 3, 5)
    moved = rows.reshape(batch, math.prod(cells), channels, *patch).index_select(1, permutation)
    return moved.reshape(batch, *cells, channels, *patch).permute(0, 3, 1, 4, 2, 5).reshape(given.shape)
