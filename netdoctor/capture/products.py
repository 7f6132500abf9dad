"""Which weights get their gradients from products of matrices alone, as those of dense layers do.

The gradient of such a weight is `g.T @ x`: a NaN or Inf in `g` shows in all of a row of it, one in `x` in all of a column.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

_NODES = 20_000  # of the graph of a loss: in a larger one nothing is claimed
_LEAF, _TURNED, _ADDED = "torch::autograd::AccumulateGrad", "TBackward0", "AddmmBackward0"
_FACTORS = {_ADDED: (1, 2), "MmBackward0": (0, 1)}  # which inputs of these operations are factors
Uses = dict[Any, list[tuple[Any, int]]]  # node → the nodes that pass a gradient on to it, and at which place of theirs


def products(loss: Tensor) -> tuple[dict[int, int | None], set[int]]:
    """The ids of leaves that a loss depends on: (those of products alone → of the bias that is added to each product, all).

    The gradient of a bias is the sum of `g` over the batch: it shows what a column would, in one piece of memory.
    """
    uses = _uses(loss)
    leaves = {node: list(by) for node, by in uses.items() if node.name() == _LEAF}
    found: dict[int, int | None] = {}
    for node, by in leaves.items():
        made = [pair for user, at in by for pair in (uses.get(user, []) if user.name() == _TURNED else [(user, at)])]
        if not made or any(at not in _FACTORS.get(user.name(), ()) for user, at in made):
            continue
        if not node.variable._backward_hooks:  # which may put anything in its place
            biases = {_bias(user) if user.name() == _ADDED else None for user, _ in made}
            found[id(node.variable)] = biases.pop() if len(biases) == 1 else None
    return found, {id(node.variable) for node in leaves}


def leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that a backward of this loss gives a gradient to; none for a very large graph."""
    return [node.variable for node in _uses(loss) if node.name() == _LEAF]


def _bias(product: Any) -> int | None:
    node = product.next_functions[0][0]
    plain = node is not None and node.name() == _LEAF and node.variable.dim() == 1 and not node.variable._backward_hooks
    return id(node.variable) if plain else None


def _uses(loss: Tensor) -> Uses:
    found: Uses = {}
    stack = [loss.grad_fn]
    while stack:
        for user, at, node in _edges(stack.pop()):
            if node not in found:
                found[node] = []
                stack.append(node)
            found[node].append((user, at))
        if len(found) > _NODES:
            return {}
    return found


def _edges(user: Any) -> Iterator[tuple[Any, int, Any]]:
    for at, (node, _) in enumerate(() if user is None else user.next_functions):
        if node is not None:
            yield user, at, node
