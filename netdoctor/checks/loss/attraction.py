"""Whether a loss is nothing but a distance between a model's own outputs, or bootstraps its target from them."""

from __future__ import annotations

from collections.abc import Iterable

from netdoctor.checks.loss.comparisons import RESHAPES
from netdoctor.checks.loss.trained_targets import Pair
from netdoctor.graph import Operation, StepGraph, Value

_SIMILAR = frozenset({"cosine_similarity"})
_POSITIVE = frozenset({"mean", "sum", "pow", "square", "abs", "sqrt", "norm", "vector_norm", "nanmean"})
_PLAIN = frozenset({"add", "iadd", "mul", "div", "truediv", "stack", "cat"}) | RESHAPES | _POSITIVE
_LEAST_DISCOUNT = 0.5  # smaller weights are no discount, but a mixture


def only_attracts(graph: StepGraph, pairs: Iterable[Pair]) -> bool:
    """Whether every path of gradient from the loss leads through these comparisons, and each makes it smaller by agreeing.

    Between a comparison and the loss only averages, sums, squares and factors may stand. A similarity must be subtracted.
    """
    wanted = {pair.operation.index: pair.operation for pair in pairs}
    if graph.loss is None:
        return False
    queue, seen = [(graph.loss, 1)], set()
    while queue:
        index, sign = queue.pop()
        value = graph.values[index]
        if not value.requires_grad or (index, sign) in seen:
            continue
        seen.add((index, sign))
        made = graph.producer(index)
        if made is None:
            return False  # a leaf beside the comparisons: a penalty, say
        if made.index in wanted:
            if sign != (-1 if made.name in _SIMILAR else 1) or _pushes_apart(graph, made):
                return False
            continue
        signs = _signs(graph, made, sign)
        if signs is None:
            return False
        queue.extend(signs)
    return bool(seen)


def _pushes_apart(graph: StepGraph, made: Operation) -> bool:
    """Whether torch's loss is told by its labels that some of the pairs are different."""
    labels = [graph.values[i] for i in made.inputs[2:3]] if made.name == "cosine_embedding_loss" else []
    return any(label.low < 0 for label in labels)


def _signs(graph: StepGraph, made: Operation, sign: int) -> list[tuple[int, int]] | None:
    """The trained inputs of an operation with the sign by which each enters; None for one that is more than arithmetic."""
    trained = [i for i in made.inputs if graph.values[i].requires_grad]
    if made.name in ("neg", "negative"):
        return [(i, -sign) for i in trained]
    if made.name in ("sub", "isub", "rsub"):
        if len(trained) > 1:
            return [(trained[0], sign), (trained[1], -sign)]
        # `1 - x` is "rsub" with the number as "1", or "sub" with the number as "0"; `data - x` has x as its last input.
        second = len(made.inputs) > 1 and made.inputs[-1] in trained
        turned = made.name == "rsub" or "0" in made.attributes or second
        return [(i, -sign if turned else sign) for i in trained]
    if made.name not in _PLAIN:
        return None
    if made.name in ("mul", "div", "truediv"):
        factor = made.attributes.get("1", made.attributes.get("0", 1.0))
        negative = isinstance(factor, int | float) and factor < 0
        return None if len(trained) > 1 else [(i, -sign if negative else sign) for i in trained]
    if made.name in ("pow", "square") and sign < 0:
        return None
    return [(i, sign) for i in trained]


def bootstraps(pair: Pair) -> bool:
    """Whether one side is data plus the discounted output of a pass of its own."""
    return bootstrapped_side(pair) is not None


def bootstrapped_side(pair: Pair) -> int | None:
    """Which of the two compared tensors is data plus the discounted output of a pass of its own; None for neither."""
    own = [(1, pair.of_target - pair.behind)]
    if not pair.known_target:
        own.append((0, pair.behind - pair.of_target))
    return next((n for n, side in own if _discounts(pair.graph, side) and _adds_data(pair.graph, side)), None)


def _discounts(graph: StepGraph, side: Iterable[int]) -> bool:
    for operation in (graph.operations[i] for i in side):
        if operation.name != "mul":
            continue
        number = operation.attributes.get("1", operation.attributes.get("0"))
        data = [v for v in _values(graph, operation) if not v.requires_grad]
        if isinstance(number, int | float) and _LEAST_DISCOUNT <= number < 1:
            return True
        if any(0 <= v.low <= v.high <= 1 and v.high >= _LEAST_DISCOUNT for v in data):
            return True
    return False


def _adds_data(graph: StepGraph, side: Iterable[int]) -> bool:
    """Whether numbers without a gradient are added: rewards, which may depend on what the model did."""
    for operation in (graph.operations[i] for i in side):
        values = _values(graph, operation)
        if operation.name in ("add", "iadd") and len(values) == 2:
            data = [v for v in values if not v.requires_grad]
            if len(data) == 1 and len(data[0].shape) > 0:
                return True
    return False


def _values(graph: StepGraph, operation: Operation) -> list[Value]:
    return [graph.values[i] for i in operation.inputs]
