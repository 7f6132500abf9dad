"""Inputs of a batch with something of them exchanged: the other samples, or what comes after a position."""

from __future__ import annotations

import torch
from torch import Tensor


def alone(tensor: Tensor, kept: int, dim: int, size: int) -> Tensor:
    """The tensor with all samples (along `dim`) made copies of the one that is kept; as it is where it has no such samples."""
    if tensor.dim() <= dim or tensor.shape[dim] != size:
        return tensor
    return tensor.narrow(dim, kept, 1).expand_as(tensor).clone()


def other_future(tensor: Tensor, last: int, dim: int) -> Tensor:
    """The tensor with every position after `last` (along `dim`) drawn from all positions of the batch. Draws the same each time."""
    rows = (tensor.movedim(dim, 1) if tensor.dim() > 1 else tensor[None]).clone()
    flat = rows.flatten(0, 1)
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(last)).to(flat.device)
    rows[:, last + 1 :] = flat[order].reshape(rows.shape)[:, last + 1 :]
    return rows.movedim(1, dim) if tensor.dim() > 1 else rows[0]
