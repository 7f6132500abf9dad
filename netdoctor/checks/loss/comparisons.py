"""Where a captured step compares a prediction with a target, and what made the prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.graph import Operation, StepGraph, Value
from netdoctor.recording import Recording, SourceLine

CROSS_ENTROPY, NLL = "cross_entropy", "nll_loss"
BCE, BCE_LOGITS = "binary_cross_entropy", "binary_cross_entropy_with_logits"
POISSON = "poisson_nll_loss"
REGRESSION = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
LOSSES = REGRESSION | {CROSS_ENTROPY, NLL, BCE, BCE_LOGITS, POISSON, "kl_div", "multilabel_soft_margin_loss"}
# Operations that only lay the same numbers out anew, or take some of them.
_RESHAPES = """
view reshape flatten unflatten squeeze unsqueeze permute transpose t T mT contiguous getitem swapaxes swapdims
movedim moveaxis narrow select chunk split unbind clone to float double half bfloat16 type cpu cuda expand
expand_as view_as reshape_as alias index_select gather take_along_dim ravel type_as
"""
RESHAPES = frozenset(_RESHAPES.split())
_DISTANCES = frozenset({"square", "abs", "norm", "pow"})


@dataclass(frozen=True, slots=True)
class Comparison:
    """A call of a known loss function behind a `backward`. `prediction` needs a gradient; `target` is the other side."""

    graph: StepGraph
    operation: Operation
    prediction: Value
    target: Value

    @property
    def maker(self) -> Operation | None:
        """The operation that made the prediction, reshapes aside; None for what came from outside."""
        return maker(self.graph, self.prediction.index)


def graphs(recording: Recording) -> list[StepGraph]:
    """The captured graphs that end in a loss; of a later part of the training only where another line makes it."""
    found = recording.graphs or ([recording.graph] if recording.graph is not None else [])
    ending = [graph for graph in found if graph.loss is not None]
    first = [graph for graph in ending if graph.operations[:1] == ending[0].operations[:1]]
    known = {_ending(graph) for graph in first}
    return first + [
        graph for graph in ending if all(graph is not other for other in first) and _ending(graph) not in known
    ]


def _ending(graph: StepGraph) -> tuple[str, int]:
    made = None if graph.loss is None else graph.producer(graph.loss)
    return ("", 0) if made is None else (made.file, made.line)


def comparisons(recording: Recording) -> Iterator[Comparison]:
    """Every call of a known loss function behind a `backward`, each once, in order of execution."""
    seen: set[tuple[int, str, str, int]] = set()
    for graph in graphs(recording):
        for operation in graph.named_behind(LOSSES):
            if operation.identity not in seen and len(operation.inputs) > 1:
                seen.add(operation.identity)
                first, second = (graph.values[i] for i in operation.inputs[:2])
                swapped = operation.name in REGRESSION and second.requires_grad and not first.requires_grad
                yield Comparison(graph, operation, *((second, first) if swapped else (first, second)))


def maker(graph: StepGraph, value: int) -> Operation | None:
    """The operation that made a value, looking through reshapes."""
    operation = graph.producer(value)
    while operation is not None and operation.name in RESHAPES and operation.inputs:
        operation = graph.producer(operation.inputs[0])
    return operation


def line(recording: Recording, operation: Operation) -> SourceLine | None:
    """The user's line for an operation: where its module is built, for a module of torch.nn; else where it stands."""
    layer = recording.layer_at(operation.module) if operation.module else None
    if layer is not None and layer.type == operation.module_type and layer.source is not None:
        return layer.source
    return SourceLine(operation.file, operation.line, operation.text) if operation.file else None


def dimension(operation: Operation, default: int | None = None) -> int | None:
    """The `dim` argument of a softmax, as the user gave it; `default` where there is none."""
    dim = operation.attributes.get("dim", operation.attributes.get("1", default))
    return dim if isinstance(dim, int) and not isinstance(dim, bool) else default


def width(value: Value) -> int:
    """How many numbers a prediction has per sample: the size of dimension 1 (the classes), 1 for vectors."""
    return value.shape[1] if len(value.shape) > 1 else 1


def place(operation: Operation) -> str:
    """Where an operation stands, for a title: its module, the model itself, or the loop's own code."""
    return operation.module or ("the model" if operation.inside else "the loss code")


def differences(recording: Recording) -> Iterator[Comparison]:
    """Squared or absolute differences written by hand outside of modules, as comparisons."""
    seen: set[tuple[int, str, str, int]] = set()
    for graph in graphs(recording):
        for operation in reversed(graph.named_behind(_DISTANCES)):
            before = graph.producer(operation.inputs[0]) if operation.inputs else None
            squared = operation.name != "pow" or operation.attributes.get("1") == 2
            if not squared or before is None or before.name not in {"sub", "rsub"} or before.inside:
                continue
            if len(before.inputs) == 2 and before.identity not in seen:
                seen.add(before.identity)
                one, two = (graph.values[i] for i in before.inputs)
                if one.requires_grad != two.requires_grad:
                    yield Comparison(graph, before, *((one, two) if one.requires_grad else (two, one)))
