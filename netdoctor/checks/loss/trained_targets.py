"""Losses whose target is made of trainable weights and gets a gradient: which weights stand behind either side."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import LOSSES
from netdoctor.graph import Operation, StepGraph

SYMMETRIC = frozenset({"cosine_similarity", "cosine_embedding_loss", "pairwise_distance", "sub", "rsub"})
_WITH_TARGET = LOSSES - {"nll_loss", "multilabel_soft_margin_loss"}
_SQUARES = frozenset({"pow", "square", "abs", "norm", "mul", "vector_norm"})


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison of two things that both get a gradient. `behind` and `of_target` are the operations that made either side
    along gradients, `weights` and `target_weights` the trainable parameters that they use."""

    graph: StepGraph
    operation: Operation
    behind: frozenset[int]
    of_target: frozenset[int]
    weights: frozenset[str]
    target_weights: frozenset[str]

    @property
    def known_target(self) -> bool:
        """Whether the operation itself says which side is the target."""
        return self.operation.name in _WITH_TARGET

    def alone(self) -> list[Operation]:
        """The operations that made the target and not the prediction, in order."""
        return [self.graph.operations[i] for i in sorted(self.of_target - self.behind)]

    def used(self, operations: list[Operation]) -> set[str]:
        """The trainable parameters that operations read."""
        values = [self.graph.values[i] for operation in operations for i in operation.inputs]
        return {value.name for value in values if value.name and value.requires_grad}


def pairs(graph: StepGraph) -> Iterator[Pair]:
    """The comparisons behind a loss, along gradients, of two things that depend on trainable weights."""
    if graph.loss is None:
        return
    for index in sorted(_operations(graph, graph.loss)):
        operation = graph.operations[index]
        if len(operation.inputs) < 2 or not _compares(graph, operation):
            continue
        sides = [_operations(graph, value) for value in operation.inputs[:2]]
        used = [_weights(graph, side) for side in sides]
        if all(graph.values[i].requires_grad for i in operation.inputs[:2]) and all(used):
            yield Pair(graph, operation, sides[0], sides[1], used[0], used[1])


def all_pairs(found: list[StepGraph]) -> list[Pair]:
    """The pairs of several graphs; an operation that several of them end in counts once."""
    seen: dict[tuple[int, str, str, int], Pair] = {}
    for graph in found:
        for pair in pairs(graph):
            seen.setdefault(pair.operation.identity, pair)
    return list(seen.values())


def _compares(graph: StepGraph, operation: Operation) -> bool:
    if operation.name in _WITH_TARGET:
        return True
    last = None if graph.loss is None else graph.producer(graph.loss)
    beside = last is not None and last.inside and last.module == operation.module  # a model that gives its own loss
    if operation.name not in SYMMETRIC or (operation.inside and not beside):
        return False
    shapes = [graph.values[i].shape for i in operation.inputs[:2]]
    if shapes[0] != shapes[1] or not shapes[0]:
        return False
    following = graph.consumers(operation.outputs[0])
    return operation.name not in {"sub", "rsub"} or any(o.name in _SQUARES for o in following)


def _operations(graph: StepGraph, value: int) -> frozenset[int]:
    """The operations that a value depends on, along values that get a gradient."""
    seen: set[int] = set()
    queue = [value]
    while queue:
        held = graph.values[queue.pop()]
        if held.requires_grad and held.producer is not None and held.producer not in seen:
            seen.add(held.producer)
            queue.extend(graph.operations[held.producer].inputs)
    return frozenset(seen)


def _weights(graph: StepGraph, operations: frozenset[int]) -> frozenset[str]:
    values = (graph.values[i] for index in operations for i in graph.operations[index].inputs)
    return frozenset(v.name for v in values if v.origin == "parameter" and v.requires_grad and v.name)


def detached(operation: Operation) -> str:
    """The user's line with `.detach()` around the second argument of the comparison; the general form where it is not found."""
    try:
        tree = ast.parse(operation.text)
    except (SyntaxError, ValueError):
        tree = ast.Module([], [])
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) >= 2]
    plain = [call for call in calls if not any(other in ast.walk(call) and other is not call for other in calls)]
    if len(plain) != 1 or not isinstance(plain[0].args[1], ast.Name | ast.Call | ast.Attribute | ast.Subscript):
        return "target = target.detach()"
    end = plain[0].args[1].end_col_offset or 0
    return f"{operation.text.encode()[:end].decode()}.detach(){operation.text.encode()[end:].decode()}"
