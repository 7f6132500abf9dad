"""Along which dimension a similarity is taken, and along which both of its operands vary."""

from __future__ import annotations

from netdoctor.graph import Operation, StepGraph

_EXPANDS = frozenset({"expand", "expand_as", "broadcast_to", "repeat", "tile"})
_PASSES = frozenset(
    {"contiguous", "clone", "float", "double", "half", "bfloat16", "to", "type", "detach", "mul", "div"}
)


def compared(graph: StepGraph, operation: Operation) -> tuple[int, ...]:
    """The shape that both operands of a similarity are broadcast to; empty where they are not two."""
    if len(operation.inputs) < 2:
        return ()
    first, second = (graph.values[i].shape for i in operation.inputs[:2])
    size = max(len(first), len(second))
    pairs = zip((1,) * (size - len(first)) + first, (1,) * (size - len(second)) + second, strict=True)
    return tuple(max(pair) for pair in pairs)


def reduced(graph: StepGraph, operation: Operation) -> int | None:
    """The dimension that is summed over, counted from the end (-1 is the last); 1 is torch's default. None: not known."""
    size = len(compared(graph, operation))
    given = next((operation.attributes[name] for name in ("dim", "2") if name in operation.attributes), 1)
    if not isinstance(given, int) or isinstance(given, bool) or not -size <= given < size:
        return None
    return given if given < 0 else given - size


def same_along(graph: StepGraph, value: int, dim: int) -> bool:
    """Whether a tensor is the same all along a dimension (counted from the end): it has size 1 there, or was expanded from it."""
    shape = graph.values[value].shape
    if len(shape) < -dim or shape[dim] == 1:
        return True
    producer = graph.producer(value)
    if producer is None or not producer.inputs:
        return False
    if producer.name in _EXPANDS:
        return same_along(graph, producer.inputs[0], dim)
    alone = producer.name in _PASSES and len(producer.inputs) == 1
    return alone and same_along(graph, producer.inputs[0], dim)


def features(graph: StepGraph, operation: Operation) -> int | None:
    """The last dimension along which both operands vary, from the end; None where there is none but the first, the samples."""
    size = len(compared(graph, operation))
    both = [
        dim for dim in range(-1, -size, -1) if not any(same_along(graph, value, dim) for value in operation.inputs[:2])
    ]
    return both[0] if both else None
