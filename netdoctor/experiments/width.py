"""Would a wider model predict better? Hidden dense layers of a copy are made wider, and both learn from the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.blocking import WIDER as WIDER_LAYERS
from netdoctor.experiments.held_out import learn
from netdoctor.experiments.sandbox import Budget, Sandbox
from netdoctor.experiments.unblocking import Treatment
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Arm, Recording

NARROW, WIDE = "width/as it is", "width/wider"
WIDER = 64  # units at least, and at least `TIMES` as many as there are
TIMES = 4
MOST = 256  # units: wider layers are no bottleneck of what is captured here
_ALONG_NAMES = """
relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardtanh hardsigmoid hardswish softplus softsign
    dropout alpha_dropout identity
"""
_ALONG = frozenset(_ALONG_NAMES.split())
_BENDING_NAMES = (
    "softmax log_softmax max_pool2d max_pool1d lstm gru rnn_tanh rnn_relu scaled_dot_product_attention mul pow"
)
_BENDING = frozenset(_BENDING_NAMES.split()) | {
    "layer_norm",
    "batch_norm",
    "group_norm",
    "maximum",
    "square",
    "exp",
    "sin",
    "cos",
}

_PRODUCTS = frozenset({"matmul", "bmm", "mm", "einsum", "baddbmm", "dot"})
_VIEWS = frozenset({"t", "transpose", "permute", "T", "mT", "view", "reshape", "unsqueeze", "squeeze", "expand"})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two dense layers with nothing but an activation between: their paths, and the units between them."""

    first: str
    second: str
    units: int


def widen(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "width/as it is" and "width/wider", where the model has narrow hidden dense layers; else none.

    Both start from PyTorch's own initialisation of these layers. Losses are those of held-out batches. Facts of the
    wider one: "layers", the paths of the widened layers, "units", how many the narrowest of them had, "wider", and now.
    """
    found = pairs(recording.graph) if recording.graph is not None else []
    found = [pair for pair in found if pair.units <= MOST]
    if not found:
        return {}
    narrow = learn(NARROW, step, lambda sandbox: _rebuild(sandbox, found, 1), budget.share(budget.left / 2))
    wide = learn(WIDE, step, lambda sandbox: _rebuild(sandbox, found, TIMES), budget.share(budget.left))
    least = min(pair.units for pair in found)
    facts = {
        **wide.facts,
        "layers": ",".join(p.first for p in found),
        "units": float(least),
        "wider": float(_wider(least)),
    }
    return {NARROW: narrow, WIDE: Arm(WIDE, np.asarray(wide.losses), wide.seconds, facts, failure=wide.failure)}


def pairs(graph: StepGraph) -> list[Pair]:
    """The pairs of dense layers of the captured step whose hidden units nothing else reads, in order."""
    dense = {operation.index for operation in graph.loss_operations() if operation.name == "linear"}
    paths = [graph.operations[index].module for index in dense]
    found = []
    for index in sorted(dense):
        one = graph.operations[index]
        other = _next(graph, one)
        alone = other is not None and paths.count(one.module) == 1 == paths.count(other.module)
        if other is not None and alone and one.module_type == other.module_type == "Linear":
            found.append(Pair(one.module, other.module, graph.values[one.outputs[0]].shape[-1]))
    return found


def bends(graph: StepGraph) -> bool:
    """Whether a model of the captured step is more than linear in its input: it has an activation, or multiplies two things that it
    made. A step without any model (loose weights) may be anything."""
    names = _ALONG - {"dropout", "alpha_dropout", "identity"} | _BENDING
    inner = [operation for operation in graph.operations if operation.inside]
    return not inner or any(operation.name in names or _multiplies(graph, operation) for operation in inner)


def _multiplies(graph: StepGraph, operation: Operation) -> bool:
    """Whether both factors of a product come from layers, as two embeddings do."""
    made = [i for i in operation.inputs if graph.values[i].trained and graph.values[i].origin == "operation"]
    return operation.name in _PRODUCTS and len({_source(graph, i) for i in made} - {None}) > 1


def _source(graph: StepGraph, value: int) -> int | None:
    """What a view shows; None where that is a weight that is only turned (`W.t()`), which is no second factor."""
    maker = graph.producer(value)
    while maker is not None and maker.name in _VIEWS and maker.inputs:
        value = maker.inputs[0]
        maker = graph.producer(value)
    return value if graph.values[value].origin == "operation" else None


def wider(graph: StepGraph) -> Iterator[Treatment]:
    """The treatment that gives narrow hidden dense layers more units, for the tiny batch; none where there are none."""
    found = [pair for pair in pairs(graph) if pair.units <= MOST]
    if found:
        yield Treatment(WIDER_LAYERS, lambda *_: True, lambda sandbox, _: _rebuild(sandbox, found, TIMES))


def _next(graph: StepGraph, operation: Operation) -> Operation | None:
    """The dense layer that alone reads what this one makes, with only activations between; None where it is not so."""
    while True:
        readers = [reader for value in operation.outputs for reader in graph.consumers(value)]
        if len(readers) != 1:
            return None
        operation = readers[0]
        if operation.name == "linear":
            return operation
        if operation.name not in _ALONG:
            return None


def _wider(units: int) -> int:
    return max(WIDER, TIMES * units)


def _rebuild(sandbox: Sandbox, found: list[Pair], times: int) -> None:
    """New weights for the layers of all pairs; `times` above 1: with more units between them."""
    layers = {name: child for module in sandbox.modules() for name, child in module.named_modules()}
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for pair in found:
        units = _wider(pair.units) if times > 1 else pair.units
        outputs[pair.first] = inputs[pair.second] = units
    for path in {**inputs, **outputs}:
        layer = layers.get(path)
        if not isinstance(layer, nn.Linear):
            raise CannotReplayError(f"{path} is not a dense layer of one model alone")
        new = nn.Linear(
            inputs.get(path, layer.in_features),
            outputs.get(path, layer.out_features),
            layer.bias is not None,
            layer.weight.device,
            layer.weight.dtype,
        )
        layer.weight.data = new.weight.data  # the very parameters, which an optimizer may hold already
        if layer.bias is not None:
            layer.bias.data = new.bias.data
        layer.in_features, layer.out_features = new.in_features, new.out_features
