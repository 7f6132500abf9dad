"""One look at all gradients of a step, as cheap as it can be: is anything in them not finite, and how large are they?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Groups = list[dict[str, Any]]

LARGE = 4_096  # entries of a weight from which a look at one row and one column costs less than one at all of them
MANY = 12  # vectors from which gathering them first costs less than a call for each


def device_norm(groups: Groups) -> Tensor | None:
    """The 2-norm over all gradients, 0-dim and on their device, without waiting for it. None without any gradient."""
    held = _gradients([parameter for group in groups for parameter in group["params"]])
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(held))) if held else None


class Gradients:
    """The gradients of an optimizer's parameters, all on the CPU. `products`: see products.py."""

    def __init__(self, groups: Groups, products: dict[int, int | None]) -> None:
        self._sizes = [len(group["params"]) for group in groups]
        held: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        self._vectors = [p for p in held if p.dim() == 1]
        self._products = [p for p in held if p.dim() == 2 and p.numel() >= LARGE and id(p) in products]
        known = {id(p) for p in (*self._vectors, *self._products)}
        self._without_bias = [p for p in self._products if products[id(p)] not in known]
        self._others = [p for p in held if id(p) not in known]
        self._whole = [*self._vectors, *self._others]  # of which every entry is read
        self._few = len(self._vectors) + len(self._products) + len(self._without_bias) < MANY

    def of(self, groups: Groups) -> bool:
        """Whether the optimizer has as many parameters as it had."""
        return [len(group["params"]) for group in groups] == self._sizes

    def norm(self) -> float | None:
        """The 2-norm over all gradients; NaN or Inf where one of them holds such a value. None without any gradient."""
        held = _gradients([*self._products, *self._others])
        if vectors := _gradients(self._vectors):
            held.append(torch.cat(vectors))  # biases, norms: each call costs more than reading them
        # Reading single numbers back costs less than gathering them first; `hypot` takes them in double precision.
        return math.hypot(*[value.item() for value in torch._foreach_norm(held)]) if held else None

    def total(self) -> float:
        """The sum of all gradients, for a third less than their norm, with one row and one column in place of each large product.

        A NaN or Inf cannot be lost in a sum; a sum of huge values may overflow, and the norm tells then. A product of matrices
        that have a NaN or Inf has one in all of a row or all of a column; where a row has one, the bias has one too. Only a sum
        of finite products that overflows is not seen here, whose norm was above 1e30 long before.
        """
        if self._few:  # flat, and a sum each: between two steps every other line and kernel is gone from the caches
            total = 0.0
            for parameter in self._whole:
                if (gradient := parameter.grad) is not None:
                    total += gradient.sum().item()
            for parameter in self._products:
                if (gradient := parameter.grad) is not None:
                    total += gradient[0].sum().item()
            for parameter in self._without_bias:
                if (gradient := parameter.grad) is not None:
                    total += gradient.select(1, 0).sum().item()
            return total
        small = _gradients(self._vectors)
        small += [gradient[0] for parameter in self._products if (gradient := parameter.grad) is not None]
        small += [gradient.select(1, 0) for gradient in _gradients(self._without_bias)]
        pieces = [torch.cat(small), *_gradients(self._others)] if small else _gradients(self._others)
        return float(sum([piece.sum().item() for piece in pieces]))


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
