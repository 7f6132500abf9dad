"""Where a loss takes pairs (or triplets) of embeddings for alike or different: by a label of two values, or by their order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.graph import Operation, StepGraph, Value

AS_THEY_ARE, TURNED = "pair labels/as they are", "pair labels/turned"
LABEL, TRIPLET, DIFFERENCE, SIGN = "label", "triplet", "difference", "sign"
_FUSED = frozenset({"cosine_embedding_loss"})  # distance and comparison in one
_TRIPLETS = frozenset({"triplet_margin_loss", "triplet_margin_with_distance_loss"})
_DIRECT = frozenset({"pairwise_distance", "cosine_similarity"}) | _FUSED
_PRODUCTS = frozenset({"einsum", "vecdot", "linalg_vecdot", "bmm"})
_REDUCING = frozenset({"norm", "vector_norm", "linalg_vector_norm", "linalg_norm", "sum", "mean"})
_BETWEEN = frozenset({"pow", "square", "abs", "sqrt"})
_SIMILAR = frozenset({"cosine_similarity", "cosine_embedding_loss"}) | _PRODUCTS
_SELECTING = frozenset({"argmax", "argmin", "topk", "sort", "argsort", "kthvalue", "multinomial"})
_REDUCED_BY = frozenset({"max", "min", "amax", "amin"})
_ROUNDING = 1e-6  # of the variance


@dataclass(frozen=True, slots=True)
class PairSite:
    """An operation behind the loss that says which pairs are alike. `kind`: a "label" of the two values `low` and `high`
    goes into it; it is torch's loss of a "triplet"; it takes the "difference" of the two distances of one; or the "sign"
    of a ranking goes into it. `offset` is what the difference holds of the margin, twice."""

    operation: Operation
    kind: str
    low: float = 0.0
    high: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class _Distance:
    """A distance or similarity, one number for each pair; the values that it compares."""

    operation: Operation
    sides: frozenset[int]


def pair_sites(graph: StepGraph) -> list[PairSite]:
    """The operations of a captured step by which pairs of embeddings are told alike or different; empty where there are none.

    Embeddings are what trained weights make. A similarity counts where the same weights stand behind both sides: with weights
    of its own either side can turn its sign, and labels of the opposite sense are as easy to learn. Nor does what weights
    read from a distance, or a distance of what the model itself has picked out (the hardest of a batch).
    """
    if graph.loss is None or _selects(graph, graph.loss_operations()):
        return []
    behind = graph.values_behind(by_gradient=True)
    found = [d for o in graph.loss_operations() if (d := _distance(graph, o)) is not None]
    reached = {d.operation.index: d for d in found}
    sites = list(_labelled(graph, found, behind))
    if not any(site.low in (0.0, -site.high) for site in sites):  # such as 0 and 1, -1 and 1, 0 and a weight
        sites = []
    return sites if sites or _selects(graph, graph.operations) else list(_triplets(graph, reached))


# --- distances -------------------------------------------------------------------------------------------------------


def _distance(graph: StepGraph, operation: Operation) -> _Distance | None:
    sides, product = _sides(graph, operation)
    if len(set(sides)) != 2 or not operation.outputs:
        return None
    one, two = (graph.values[i] for i in sides)
    made, count = graph.values[operation.outputs[0]], one.shape[0] if one.shape else 0
    per_pair = operation.name in _FUSED or (count > 1 and math.prod(made.shape) == count)
    if not per_pair or one.shape != two.shape or len(one.shape) < 2 or not (one.trained and two.trained):
        return None
    if (product or operation.name in _SIMILAR) and not _weights(graph, one.index) & _weights(graph, two.index):
        return None
    return _Distance(operation, frozenset(sides))


def _sides(graph: StepGraph, operation: Operation) -> tuple[tuple[int, ...], bool]:
    """The two values that are compared, and whether by their product."""
    if operation.name in _DIRECT or operation.name in _PRODUCTS:
        return operation.inputs[:2], operation.name in _PRODUCTS
    before = graph.producer(operation.inputs[0]) if operation.name in _REDUCING and operation.inputs else None
    while before is not None and (before.name in _BETWEEN or (before.name == "mul" and len(set(before.inputs)) == 1)):
        before = graph.producer(before.inputs[0])
    if before is None or before.name not in ("sub", "mul"):
        return (), False
    return before.inputs[:2], before.name == "mul"


def _weights(graph: StepGraph, value: int) -> set[int]:
    """The parameters behind a value."""
    read = {i for operation in graph.ancestors(value) for i in operation.inputs} | {value}
    return {i for i in read if graph.values[i].origin == "parameter" and graph.values[i].requires_grad}


def _selects(graph: StepGraph, operations: list[Operation]) -> bool:
    """Whether one of them, outside of the model, picks something out by what the model made of it."""
    return any(_picks(graph, operation) for operation in operations if not operation.inside)


def _picks(graph: StepGraph, operation: Operation) -> bool:
    given = [graph.values[i] for i in operation.inputs]
    if operation.name in _SELECTING:
        return any(value.trained for value in given)
    if operation.name in _REDUCED_BY:  # not of a tensor and a number
        fewer = operation.outputs and graph.values[operation.outputs[0]].shape != given[0].shape
        return bool(fewer) and len(given) == 1 and given[0].trained
    return operation.name in ("getitem", "index_select", "gather") and any(
        value.trained and value.dtype.endswith("int64") for value in given[1:]
    )


# --- labels ----------------------------------------------------------------------------------------------------------


def _labelled(graph: StepGraph, distances: list[_Distance], behind: frozenset[int]) -> Iterator[PairSite]:
    """The operations between a distance and the loss that read something of two values, one for each pair."""
    seen: set[tuple[int, float, float]] = set()
    for distance in distances:
        fused = distance.operation.name in _FUSED
        rows = graph.values[min(distance.sides)].shape[0]
        for operation in [distance.operation] if fused else _after(graph, distance.operation, behind):
            for value in (graph.values[i] for i in operation.inputs):
                site = (operation.index, value.low, value.high)
                if two_valued(value) and math.prod(value.shape) == rows and site not in seen:
                    seen.add(site)
                    yield PairSite(operation, LABEL, value.low, value.high)


def two_valued(value: Value) -> bool:
    """Whether a value that no weight made holds two different numbers and no other: only then its variance is
    (high - mean) · (mean - low), the largest that there is between the two (Bhatia and Davis 2000)."""
    wide = value.high - value.low
    if value.trained or value.requires_grad or not value.finite or not wide > 0:
        return False
    most = (value.high - value.mean) * (value.mean - value.low)
    return most > 0 and abs(value.std**2 - most) <= _ROUNDING * most


def _after(graph: StepGraph, operation: Operation, behind: frozenset[int]) -> list[Operation]:
    """What is made of a distance on its way to the loss, without what layers make of it."""
    queue, found = list(operation.outputs), {}
    while queue:
        for reader in graph.consumers(queue.pop()):
            if reader.index not in found and behind.intersection(reader.outputs) and not _is_layer(graph, reader):
                found[reader.index] = reader
                queue.extend(reader.outputs)
    return [found[index] for index in sorted(found)]


def _is_layer(graph: StepGraph, operation: Operation) -> bool:
    read = [graph.values[i] for i in operation.inputs]
    return any(value.origin == "parameter" and len(value.shape) > 1 for value in read)


# --- triplets --------------------------------------------------------------------------------------------------------


def _triplets(graph: StepGraph, distances: dict[int, _Distance]) -> Iterator[PairSite]:
    for operation in graph.loss_operations():
        if operation.name in _TRIPLETS and all(graph.values[i].trained for i in operation.inputs[:3]):
            yield PairSite(operation, TRIPLET)
        elif operation.name in ("sub", "margin_ranking_loss") and len(operation.inputs) > 1:
            chains = [_chain(graph, i, distances) for i in operation.inputs[:2]]
            if chains[0] is None or chains[1] is None or not _of_a_triplet(chains[0], chains[1]):
                continue
            ranked = operation.name != "sub"
            offset = 0.0 if ranked else 2 * (chains[0].added - chains[1].added)
            yield PairSite(operation, SIGN if ranked else DIFFERENCE, offset=offset)


@dataclass(frozen=True, slots=True)
class _Chain:
    """What was made of a distance, operation by operation, and the number that was added last."""

    distance: _Distance
    names: tuple[str, ...]
    added: float


def _chain(graph: StepGraph, value: int, distances: dict[int, _Distance]) -> _Chain | None:
    names: list[str] = []
    added = 0.0
    while (made := graph.producer(value)) is not None and made.index not in distances:
        if len(made.inputs) != 1:
            return None
        number = made.attributes.get("1", made.attributes.get("0"))
        if made.name == "add" and not names and isinstance(number, int | float):
            added += float(number)
        else:
            names.append(f"{made.name} {sorted(made.attributes.items())}")
        value = made.inputs[0]
    return None if made is None else _Chain(distances[made.index], tuple(names), added)


def _of_a_triplet(one: _Chain, other: _Chain) -> bool:
    """Whether two distances are of one anchor to two others, measured alike."""
    alike = one.names == other.names and (one.distance.operation.name == other.distance.operation.name)
    return alike and len(one.distance.sides & other.distance.sides) == 1
