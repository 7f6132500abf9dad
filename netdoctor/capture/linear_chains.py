"""Products with one trained matrix after another, read off autograd's graph: also where no operation was seen, as in torch.func."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

KIND = "linear pair"  # of the events
MOST = 20_000  # nodes: a walk over them takes some 20 ms
_PRODUCTS = ("MmBackward", "BmmBackward", "MvBackward", "AddmmBackward")
_TURNS = ("TBackward", "TransposeBackward")
_LAID_OUT = (
    "ViewBackward",
    "UnsafeViewBackward",
    "ReshapeAliasBackward",
    "UnsqueezeBackward",
    "SqueezeBackward",
    "ExpandBackward",
)


def pairs(loss: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The trained matrices W, V of which V multiplies what W made, with nothing between them but a bias and a change of shape, and
    what they have between them is no narrower than what they connect: together they can do what one matrix does."""
    readers = _readers(loss)
    found: Counter[tuple[int, int]] = Counter()
    matrices: dict[int, Tensor] = {}
    for node in readers:
        layer = _layer(node)
        below = None if layer is None else _layer(_through(layer[2], readers))
        if layer is None or below is None or layer[0] is below[0]:
            continue
        (_, middle), (given, made) = below[1], layer[1]
        if given == middle and middle >= min(below[1][0], made):
            matrices |= {id(below[0]): below[0], id(layer[0]): layer[0]}
            found[id(below[0]), id(layer[0])] += 1
    # Where the loss has derivatives in it the matrices come in reverse order as well, and less often.
    ways = {(a, b): n for (a, b), n in found.items() if n >= found[b, a] and not (n == found[b, a] and a > b)}
    return [(matrices[a], matrices[b]) for a, b in reversed(ways)]  # from the input on


def told(loss: Tensor | None, key_of: Callable[[Tensor], str]) -> list[tuple[str, str]]:
    """The names of these pairs; nothing for a loss without a graph."""
    named = [] if loss is None else [(key_of(one), key_of(other)) for one, other in pairs(loss)]
    return [(one, other) for one, other in named if one and other]


def _readers(loss: Tensor) -> dict[Any, int]:
    """All nodes behind a loss, and how many others each is read by; none where they are too many."""
    counts: dict[Any, int] = {}
    queue = [loss.grad_fn]
    while queue and len(counts) < MOST:
        node = queue.pop()
        known = node in counts
        counts[node] = counts.get(node, 0) + 1
        queue.extend(() if known or node is None else (below for below, _ in node.next_functions))
    counts.pop(None, None)
    return {} if queue else counts


def _layer(node: Any) -> tuple[Tensor, tuple[int, int], Any] | None:
    """The matrix of a product with one, its sizes (given, made), and the node of what it multiplies (None for plain data)."""
    if node is None or not type(node).__name__.startswith(_PRODUCTS):
        return None
    left, right = (below for below, _ in node.next_functions[-2:])
    for leaf, other, turned in ((right, left, False), (left, right, True)):
        found = _matrix(leaf)
        if found is not None:
            return found[0], found[1][::-1] if turned else found[1], other
    return None


def _matrix(node: Any) -> tuple[Tensor, tuple[int, int]] | None:
    """The leaf of two dimensions at this node, and its sizes as they are turned."""
    turns = 0
    while node is not None and type(node).__name__.startswith(
        (*_TURNS, "UnsqueezeBackward", "ExpandBackward", "SqueezeBackward")
    ):
        turns += type(node).__name__.startswith(_TURNS)
        node = node.next_functions[0][0]
    leaf = getattr(node, "variable", None)
    if not isinstance(leaf, Tensor) or leaf.dim() != 2:
        return None
    sizes = int(leaf.shape[0]), int(leaf.shape[1])
    return leaf, sizes[::-1] if turns % 2 else sizes


def _through(node: Any, readers: dict[Any, int]) -> Any:
    """The nearest node below that does more than add a bias or change the shape; None where others read something on the way."""
    while node is not None and readers.get(node) == 1:
        name, below = type(node).__name__, [fn for fn, _ in node.next_functions if fn is not None]
        if name.startswith("AddBackward"):
            below = [fn for fn in below if not _bias(fn)]
        elif not name.startswith((*_LAID_OUT, *_TURNS)):
            return node
        node = below[0] if len(below) == 1 else None
    return None


def _bias(node: Any) -> bool:
    while node is not None and type(node).__name__.startswith(_LAID_OUT):
        node = node.next_functions[0][0]
    leaf = getattr(node, "variable", None)
    return isinstance(leaf, Tensor) and leaf.dim() < 2
