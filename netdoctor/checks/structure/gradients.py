"""Which parameters a captured loss reaches: by gradient, or by value only."""

from __future__ import annotations

from collections.abc import Iterable

from netdoctor.checks.loss.comparisons import graphs
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Parameter, Recording, Role, Stat


def reached(graph: StepGraph) -> set[str]:
    """Names of the parameters that get a gradient from this graph's loss."""
    return {graph.values[i].name for i in graph.values_behind(by_gradient=True) if graph.values[i].name}


def reached_anywhere(recording: Recording) -> set[str]:
    """Names of the parameters that get a gradient from any captured loss."""
    return set().union(*(reached(graph) for graph in graphs(recording)))


def owned(recording: Recording, parameter: Parameter) -> bool:
    """Whether an optimizer that steps holds the parameter."""
    index = parameter.optimizer
    return index is not None and index < len(recording.optimizers) and recording.optimizers[index].steps > 0


def ever_had_gradient(recording: Recording, name: str) -> bool:
    """Whether a gradient of this parameter was there in any sampled step before an optimizer stepped on it."""
    return recording.of_parameter(name, Stat.RMS, Role.WEIGHT_GRADIENT) is not None


def users(graph: StepGraph, names: Iterable[str]) -> list[Operation]:
    """The operations that read one of the named parameters, in order."""
    wanted = set(names)
    found = {o.index: o for value in graph.values if value.name in wanted for o in graph.consumers(value.index)}
    return [found[index] for index in sorted(found)]


def loose_end(graph: StepGraph, names: Iterable[str]) -> Operation | None:
    """The last operation made of the named parameters whose result nothing reads; None where they were not used."""
    depends: set[int] = set()
    first, end = users(graph, names), None
    wanted = {operation.index for operation in first}
    for operation in graph.operations[first[0].index :] if first else ():
        if operation.index in wanted or not depends.isdisjoint(operation.inputs):
            depends.update(operation.outputs)
            end = operation if not any(map(graph.consumers, operation.outputs)) else end
    return end


def modules(recording: Recording, names: Iterable[str]) -> list[str]:
    """The modules that hold the named parameters, in their order, each once."""
    held = (recording.parameters[name] for name in names if name in recording.parameters)
    return list(dict.fromkeys(p.module or p.name for p in held))


def listed(names: list[str], most: int = 4) -> str:
    """Some names as text: all when they are few, else the first ones and how many more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def copies(recording: Recording, names: Iterable[str]) -> bool:
    """Whether all of these parameters have a counterpart that gets a gradient, as in a target network."""
    reach = reached_anywhere(recording)
    live = {(p.shape, *p.name.split(".")[-2:]) for p in recording.parameters.values() if p.name in reach}
    lost = [recording.parameters[name] for name in names]
    return all((p.shape, *p.name.split(".")[-2:]) in live for p in lost)
