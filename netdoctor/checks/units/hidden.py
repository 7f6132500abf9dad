"""Where an activation lies in the captured graph: inside the net, in a gate, at the output; and what goes into it."""

from __future__ import annotations

import math
import re

from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Kind, Layer, Recording

_WEIGHTED = re.compile(r"linear|conv|matmul|addmm|einsum|mm$|bmm|lstm|gru|rnn|embedding|attention")
_SHAPES = "view reshape unsqueeze squeeze expand expand_as transpose permute flatten chunk split getitem repeat"
_RESHAPES = frozenset(f"{_SHAPES} unflatten broadcast_to contiguous dropout mean T".split())
_PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__rmul__", "imul", "rmul", "lerp", "addcmul", "glu"})
_GATES = re.compile(r"gate|attn|attention|mask|cell|\bse\b", re.IGNORECASE)


def is_hidden(recording: Recording, layer: Layer) -> bool:
    """True when a weighted layer of the same model reads the activation's output and nothing is multiplied with it.

    Decided on the captured graph; without one, by the order of execution and by what the module is called.
    """
    later = [x for x in recording.layers if x.order > layer.order and x.model == layer.model]
    if not any(x.kind in (Kind.LINEAR, Kind.RECURRENT, Kind.ATTENTION) for x in later):
        return False
    graph = recording.graph
    own = operation_of(recording, layer)
    if graph is None or own is None:
        return _GATES.search(layer.path) is None
    return reaches_weights(graph, own) and not _is_gate(graph, own)


def entering(recording: Recording, layer: Layer) -> tuple[float, float]:
    """Mean and standard deviation of what goes into an activation at the first step; NaN when that is unknown."""
    own, graph = operation_of(recording, layer), recording.graph
    if own is None or graph is None or not own.inputs:
        return math.nan, math.nan
    value = graph.values[own.inputs[0]]
    return value.mean, value.std


def reads(recording: Recording, layer: Layer, given: Layer) -> bool:
    """Whether the activation is applied to the very output of `given`, with no factor or sum between; True if unknown."""
    own, graph = operation_of(recording, layer), recording.graph
    if own is None or graph is None or not own.inputs:
        return True
    producer = graph.producer(own.inputs[0])
    return producer is None or (producer.module == given.path and producer.name in {given.function, given.type.lower()})


def operation_of(recording: Recording, layer: Layer) -> Operation | None:
    """The operation of the captured graph that makes a layer, or None."""
    graph = recording.graph
    if graph is None:
        return None
    names = {layer.type.lower(), layer.function or layer.type.lower()}
    return next(
        (o for o in graph.operations if o.module == layer.path and o.name in names and o.call == layer.call), None
    )


def _is_gate(graph: StepGraph, own: Operation) -> bool:
    """Multiplied with another tensor (LSTM cells, WaveNet, squeeze and excitation), or mixed by `c * (1 - gate)`."""
    through = _RESHAPES | {"rsub", "sub", "__rsub__", "__sub__"}
    return graph.follow(own, lambda o: o.name in _PRODUCTS and _tensors(graph, o) > 1, through) is not None


def _tensors(graph: StepGraph, operation: Operation) -> int:
    """Operands that are not single numbers."""
    return sum(1 for value in set(operation.inputs) if graph.values[value].shape)


def reaches_weights(graph: StepGraph, own: Operation) -> bool:
    """Whether a weighted layer, or a product of matrices, depends on what an operation gives."""
    queue, seen = [own], {own.index}
    while queue:
        for value in queue.pop().outputs:
            for consumer in graph.consumers(value):
                if _WEIGHTED.search(consumer.name):
                    return True
                if consumer.index not in seen:
                    seen.add(consumer.index)
                    queue.append(consumer)
    return False
