"""Along which dimension of its scores a loss has the classes, and whether a softmax took another one."""

from __future__ import annotations

import math
from collections import deque

from netdoctor.checks.loss.comparisons import dimension
from netdoctor.graph import Operation, StepGraph

_POINTWISE = frozenset(
    {
        "log",
        "log2",
        "add",
        "radd",
        "sub",
        "mul",
        "div",
        "truediv",
        "clamp",
        "clamp_min",
        "clip",
        "neg",
        "float",
        "contiguous",
    }
)
_FLATTENING = frozenset({"flatten", "view", "reshape", "squeeze"})


def beside_classes(graph: StepGraph, softmax: Operation, dim: int) -> bool:
    """Whether the loss has the classes in the last dimension of what a softmax took along another one.

    Certain where the result comes to `nll_loss` as (everything else, classes), point by point and flattened only.
    """
    shape = graph.values[softmax.inputs[0]].shape
    last = dim in (len(shape) - 1, -1)
    if len(shape) < 3 or last or shape[dim] < 2 or shape[-1] < 2:
        return False
    rows, queue, seen = math.prod(shape[:-1]), deque(softmax.outputs), set(softmax.outputs)
    while queue:
        for reader in graph.consumers(queue.popleft()):
            given = graph.values[reader.inputs[0]].shape
            if reader.name == "nll_loss" and given == (rows, shape[-1]):
                return True
            if reader.name in _POINTWISE | _FLATTENING:
                queue.extend(made for made in reader.outputs if made not in seen)
                seen.update(reader.outputs)
    return False


def axis(graph: StepGraph, softmax: Operation) -> int:
    """The dimension that a softmax takes."""
    size = len(graph.values[softmax.inputs[0]].shape)
    own = 0 if size in (0, 1, 3) else 1  # torch's choice where none is given
    found = dimension(softmax, own)
    return own if found is None else found


def downstream(graph: StepGraph, operation: Operation) -> list[Operation]:
    """All operations that depend on this one."""
    depends = set(operation.outputs)
    found = []
    for later in graph.operations[operation.index + 1 :]:
        if depends.intersection(later.inputs):
            depends.update(later.outputs)
            found.append(later)
    return found


def samples(graph: StepGraph) -> int:
    """How many samples the model was given: the first dimension of what its first operation read; 0 when unknown."""
    first = next((o for o in graph.operations if o.inside and o.inputs), None)
    shape = graph.values[first.inputs[0]].shape if first is not None else ()
    return shape[0] if shape else 0
