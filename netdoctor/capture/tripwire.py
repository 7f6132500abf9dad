"""One look at all gradients of a step, as cheap as it can be: is anything in them not finite, and how large are they?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Groups = list[dict[str, Any]]


def norm(groups: Groups) -> float | None:
    """The 2-norm over all gradients on the CPU; NaN or Inf where one of them holds such a value. None without any gradient."""
    held = _held(groups)
    # Reading single numbers back costs less than gathering them first; `hypot` takes them in double precision.
    return math.hypot(*[value.item() for value in torch._foreach_norm(held)]) if held else None


def device_norm(groups: Groups) -> Tensor | None:
    """The same, 0-dim and on the gradients' device, without waiting for it."""
    held = _held(groups)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(held))) if held else None


def total(groups: Groups) -> float:
    """The sum of all gradients on the CPU, for a third less than their norm. A NaN or Inf cannot be lost in it; a sum of huge
    values may overflow, and the norm tells then."""
    held = _held(groups)
    return float(sum([gradient.sum().item() for gradient in held]))


def _held(groups: Groups) -> list[Tensor]:
    """All gradients; those of vectors (biases, norms) in one piece, since each call costs more than reading them."""
    held: list[Tensor] = []
    vectors: list[Tensor] = []
    for group in groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None:
                (vectors if gradient.dim() == 1 else held).append(gradient)
    if len(vectors) > 1:
        held.append(torch.cat(vectors))
    else:
        held += vectors
    return held
