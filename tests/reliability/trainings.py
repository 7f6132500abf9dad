"""A small training loop that the hazards of hooking are put into, and everything that it changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STEPS = 10  # more than are looked at one by one


def mlp(*middle: nn.Module) -> nn.Sequential:
    """Five inputs, three outputs."""
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.ReLU(), nn.Linear(8, 3))


def batch(rows: int = 4) -> Tensor:
    """Random inputs of `mlp`."""
    return torch.randn(rows, 5)


def state_of(*holders: Any) -> list[Tensor]:
    """Everything that a training changes: weights, buffers, gradients, optimizer state, random states."""
    found: list[Tensor] = []
    for holder in holders:
        if isinstance(holder, nn.Module):
            found += [t for t in holder.state_dict().values() if isinstance(t, Tensor)]
            found += [p.grad for p in holder.parameters() if p.grad is not None]
        elif isinstance(holder, torch.optim.Optimizer):
            found += [v for s in holder.state.values() for v in s.values() if isinstance(v, Tensor)]
        else:
            found.append(holder)
    numpy_state = torch.from_numpy(np.random.get_state()[1].astype(np.int64))  # type: ignore[union-attr,index]
    return [
        *(t.detach().clone() for t in found),
        torch.get_rng_state(),
        numpy_state,
        torch.tensor(random.getstate()[1]),
    ]


def fit(
    model: nn.Module,
    loss: Callable[[Any, int], Tensor] = lambda model, step: model(batch()).square().mean(),
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, 1e-2),
    steps: int = STEPS,
) -> list[Tensor]:
    """Train, and give everything that it changed."""
    with torch.no_grad():
        loss(model, 0)  # lazy modules get their shapes
    optimizer, losses = make(model.parameters()), []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, step)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.detach())
    return state_of(model, optimizer, *losses)


def same(alone: list[Tensor], watched: list[Tensor]) -> bool:
    """Equal in every bit; NaN where NaN."""
    return len(alone) == len(watched) and all(_equal(a, b) for a, b in zip(alone, watched, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.layout is torch.sparse_coo:
        a, b = a.to_dense(), b.to_dense()
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta and a.shape == b.shape
    if a.is_floating_point():
        a, b = a.nan_to_num(7e7), b.nan_to_num(7e7)
    return torch.equal(a, b)
