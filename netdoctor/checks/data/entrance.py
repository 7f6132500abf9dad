"""Where an input enters the first layer with weights, and as what: normalised on the way, or as it came."""

from __future__ import annotations

from dataclasses import dataclass

from netdoctor.graph import Operation, StepGraph, Value

_WEIGHTED_NAMES = """
linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul mm bmm addmm mv
    einsum baddbmm tensordot lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    multi_head_attention_forward
"""
_NORM_NAMES = "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize"
_LOOKUPS = frozenset({"embedding", "embedding_bag", "one_hot", "gather", "index_select", "argmax"})
_SHAPE_NAMES = """
view reshape flatten unflatten permute transpose movedim unsqueeze squeeze contiguous clone detach to float type
    type_as expand getitem T mT t cat stack chunk split unbind pad dropout feature_dropout double half
"""
_WEIGHTED, _NORMS = frozenset(_WEIGHTED_NAMES.split()), frozenset(_NORM_NAMES.split())
_SHAPES = frozenset(_SHAPE_NAMES.split())
_JOINS = frozenset({"cat", "stack"})  # what is put beside an embedding is read as it is, all the same
_BETWEEN = _SHAPES | {"add", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "max_pool3d"}
_MOST = 200  # operations that are looked at from one input on: more lie behind layers, not before them


@dataclass(frozen=True, slots=True)
class Entrance:
    """The value that a first layer reads. `direct`: nothing but its shape and dtype changed; `normed`: a norm follows."""

    value: Value
    operation: Operation
    direct: bool
    normed: bool


def entrances(graph: StepGraph, value: int) -> list[Entrance]:
    """Every place where a value, or what is made of it without weights, enters an operation with trained weights.

    Paths that end in a norm, a lookup by index, or an operation of unknown content are left out.
    """
    found: list[Entrance] = []
    queue, seen = [(value, True)], {value}
    while queue and len(seen) < _MOST:
        at, direct = queue.pop(0)
        for operation in graph.consumers(at):
            if operation.name in _NORMS or operation.name in _LOOKUPS:
                continue
            new = [output for output in operation.outputs if output not in seen]
            if not new and operation.name not in _WEIGHTED:
                continue  # known from another of its inputs
            others = [graph.values[i] for i in operation.inputs if i != at]
            if operation.name in _WEIGHTED and any(o.trained or o.origin == "parameter" for o in others):
                found.append(Entrance(graph.values[at], operation, direct, _normed(graph, operation)))
            elif operation.name in _JOINS or not any(other.trained for other in others):
                seen.update(new)
                alone = operation.name in _SHAPES and not any(other.trained for other in others)
                queue += [(output, direct and alone) for output in new]
    return found


def _normed(graph: StepGraph, operation: Operation) -> bool:
    return graph.follow(operation, lambda o: o.name in _NORMS, _BETWEEN) is not None
