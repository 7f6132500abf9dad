"""Two linear layers in a row with nothing between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import RESHAPES, graphs, line
from netdoctor.checks.signal import outcome
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording
from netdoctor.trend import judge

LINEAR = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
TRANSPARENT = RESHAPES | {"dropout", "dropout1d", "dropout2d"}
Pair = tuple[Operation, Operation]


@dataclass(frozen=True)
class MissingNonlinearity(Check):
    """Two linear layers follow each other with no activation between them, so that they are one linear layer.

    What it is: a product of two matrices is a matrix: whatever the second layer adds, the first could do alone.
    Why it hurts: the model is shallower than it looks; without any activation it is a linear model.
    How it is decided: on the operations of the captured step. The output of a linear or convolution layer goes into
    another one of the same part of the model, dropout and reshapes aside, and nowhere else, and is no narrower than
    what it connects. A warning where it leaves the model without any activation, or where training is hurt; else advice.
    When it stays silent: low-rank factorisations, whose middle is narrower; depthwise-separable and one-dimensional
    kernels; attention's projections; residual branches; embeddings; heads on top of another model.
    Fix: an activation between them.
    Sources: UMLAUT (linear-linear stack); peers.md.
    """

    name = "missing-nonlinearity"
    explains = frozenset(
        {"underfitting", "loss-not-decreasing", "cannot-overfit-tiny-batch", "depth-without-shortcuts"}
    )

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for graph in graphs(recording)[:1]:
            pairs = [pair for operation in graph.operations if (pair := _pair(graph, operation)) is not None]
            if pairs:
                yield self._finding(recording, graph, pairs)

    def _finding(self, recording: Recording, graph: StepGraph, pairs: list[Pair]) -> Finding:
        first, second = pairs[0]
        linear = _all_linear(graph)
        harmful = linear or outcome.hurt(judge(recording))
        source = line(recording, first)
        more = f", and {len(pairs) - 1} more such pairs" if len(pairs) > 1 else ""
        whole = " The model has no activation at all: it is a linear model." if linear else ""
        return Finding(
            self.name,
            f"no activation between {first.module} and {second.module}{more}",
            Severity.WARNING if harmful else Severity.ADVICE,
            f"Two linear layers in a row can do no more than one.{whole}",
            Location.at(source, first.module or None, first.name, step=0),
            (Evidence("pairs of linear layers without an activation", len(pairs), ">", 0.0),),
            (Fix("activation", f"Put one between {first.module} and {second.module}.", _code(source), Reach.MODEL),),
            first_step=0,
            places=tuple(one.module for one, _ in pairs),
        )


def _pair(graph: StepGraph, first: Operation) -> Pair | None:
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
    return shape[1], shape[0]


def _all_linear(graph: StepGraph) -> bool:
    """Whether nothing inside of the models but linear layers, dropout and reshapes makes the loss."""
    inside = [o.name for o in graph.loss_operations() if o.inside]
    return bool(inside) and all(name in LINEAR | TRANSPARENT for name in inside)


def _code(source: object) -> str:
    text = str(getattr(source, "text", ""))
    return f"{text}\nnn.ReLU()," if text.startswith("nn.") and text.endswith(",") else "x = torch.relu(x)"
