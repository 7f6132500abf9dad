"""Where a gradient is lost between parameters and the loss, on the captured operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from netdoctor.checks.structure.gradients import users
from netdoctor.graph import Operation, StepGraph

LEAVING = frozenset({"item", "numpy", "tolist", "__array__", "__float__", "float", "__int__", "data", "detach"})
INDICES = frozenset({"argmax", "argmin", "argsort", "round", "sign", "gt", "lt", "ge", "le", "eq", "ne", "topk"})


@dataclass(frozen=True, slots=True)
class Cut:
    """The operation behind which nothing requires a gradient any more, and the parameters that it cuts off."""

    operation: Operation
    names: tuple[str, ...]

    @property
    def way(self) -> str:
        """How it cuts, as the reader would say it."""
        name = self.operation.name
        if name in {"item", "numpy", "tolist", "detach", "argmax", "argmin", "argsort", "topk"}:
            return f".{name}()"
        if name == "data":
            return ".data"
        if name in {"tensor", "as_tensor", "Parameter"}:
            return f"{name}(...)"
        return name if self.operation.grad_enabled else "torch.no_grad()"


def find(graph: StepGraph, names: Iterable[str]) -> Cut | None:
    """The first operation at which the gradient towards these parameters is lost; None where their values do not lead to
    the loss, or nothing cuts them off."""
    wanted = set(names)
    behind = graph.values_behind(by_gradient=False)
    linked = {graph.values[i].name for i in behind} & wanted
    remade = graph.loss is None or any(_made_of_numbers(graph, i) for i in behind)
    if linked:
        return _first(graph, linked, behind)
    return _first(graph, wanted, None) if remade else None


def _first(graph: StepGraph, names: set[str], behind: frozenset[int] | None) -> Cut | None:
    """The first cut downstream of the parameters; with `behind` only on the way to these values."""
    seeds = users(graph, names)
    if not seeds:
        return None
    depends = {i for i, value in enumerate(graph.values) if value.name in names}
    for operation in graph.operations[seeds[0].index :]:
        if depends.isdisjoint(operation.inputs):
            continue
        depends.update(operation.outputs)
        if _loses(graph, operation) and (
            (behind is None and operation.name in LEAVING)
            or (behind is not None and behind.intersection(operation.outputs))
        ):
            found = [graph.values[i].name for i in depends if graph.values[i].name in names]
            return Cut(operation, tuple(dict.fromkeys(found)))
    return None


def _loses(graph: StepGraph, operation: Operation) -> bool:
    given = any(graph.values[i].requires_grad for i in operation.inputs)
    return given and not any(graph.values[i].requires_grad and not graph.values[i].leaf for i in operation.outputs)


def _made_of_numbers(graph: StepGraph, index: int) -> bool:
    """Whether a value was made by an operation without tensors, such as `torch.tensor(numbers)`."""
    producer = graph.producer(index)
    return graph.values[index].origin == "input" or (producer is not None and not producer.inputs)
