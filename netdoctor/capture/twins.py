"""Parameters that start with the very same values: copies of one another, or a tie that came undone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_LEAST = 8  # numbers: fewer may be equal by chance of design


def twins(starts: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """(later, earlier) of pairs (parameter, its value at the start) that are different parameters with equal values.

    Values that are all alike (zeros, ones) say nothing and are left out. A matrix is also compared with its transpose.
    """
    seen: dict[tuple[int, float, float], list[tuple[Tensor, Tensor]]] = {}
    for tensor, start in starts:
        if not isinstance(tensor, torch.nn.Parameter) or not _tells(start):
            continue
        values = start.detach()
        low, high = (float(x) for x in torch.aminmax(values))
        group = seen.setdefault((values.numel(), low, high), [])
        found = next((other for other, old in group if other is not tensor and _equal(old, values)), None)
        if found is None:
            group.append((tensor, values))
        else:
            yield tensor, found


def _tells(start: Tensor) -> bool:
    sound = start.layout is torch.strided and start.is_floating_point() and start.numel() >= _LEAST
    return sound and bool((start != start.reshape(-1)[0]).any())


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, one of them maybe transposed."""
    if one.shape == other.shape and torch.equal(one, other):
        return True
    return one.dim() == 2 and one.shape == other.t().shape and torch.equal(one, other.t())
