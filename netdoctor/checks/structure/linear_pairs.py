"""Linear layers of a captured step that follow each other directly."""

from __future__ import annotations

from netdoctor.checks.loss.comparisons import RESHAPES
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

KIND = "linear pair"  # of the events: two names of parameters, a line each
LINEAR = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
TRANSPARENT = RESHAPES | {"dropout", "dropout1d", "dropout2d"}
Pair = tuple[Operation, Operation]


def following(graph: StepGraph, first: Operation) -> Pair | None:
    """The layer and the one that follows it directly, if they do the work of one."""
    if not _layer(graph, first):
        return None
    value, narrowest = first.outputs[0], _width(graph, first)[1]
    while True:
        consumers = graph.consumers(value)
        if len(consumers) != 1 or not consumers[0].outputs:
            return None
        after = consumers[0]
        if after.name in TRANSPARENT and len(after.outputs) == 1:
            value = after.outputs[0]
            continue
        enough = _layer(graph, after) and narrowest >= min(_width(graph, first)[0], _width(graph, after)[1])
        together = first.module.rpartition(".")[0] == after.module.rpartition(".")[0] and first.module != after.module
        return (first, after) if enough and together and value == after.inputs[0] else None


def _layer(graph: StepGraph, operation: Operation) -> bool:
    """A dense layer or a full, square convolution with trained weights inside of a model."""
    if operation.name not in LINEAR or len(operation.inputs) < 2 or not operation.inside or not operation.module:
        return False
    weight, given = graph.values[operation.inputs[1]], graph.values[operation.inputs[0]]
    square = len(set(weight.shape[2:])) < 2
    whole = operation.name == "linear" or (
        len(given.shape) > 1 and weight.shape[1] == given.shape[-len(weight.shape) + 1]
    )
    return weight.requires_grad and weight.origin == "parameter" and square and whole


def _width(graph: StepGraph, operation: Operation) -> tuple[int, int]:
    """Inputs and outputs of a layer, in channels."""
    shape = graph.values[operation.inputs[1]].shape
    return (shape[1], shape[0]) if len(shape) > 1 else (max((*shape, 1)), 1)  # a product with a vector


def matrices(recording: Recording, graph: StepGraph) -> list[tuple[str, str]]:
    """The pairs of matrices that follow one another in autograd's graph, and that no module was seen to use."""
    used = {
        graph.values[value].name for operation in graph.operations if operation.inside for value in operation.inputs
    }
    pairs = [event.detail.split("\n") for event in recording.events if event.kind == KIND]
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and used.isdisjoint(pair)]


def all_linear(graph: StepGraph) -> bool:
    """Whether nothing inside of the models but linear layers, dropout and reshapes makes the loss."""
    inside = [o.name for o in graph.loss_operations() if o.inside]
    return bool(inside) and all(name in LINEAR | TRANSPARENT for name in inside)
