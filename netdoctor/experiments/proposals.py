"""What the captured steps suggest for a finding that no check has a fix for. Only what cures is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Places, Treatment, first_argument
from netdoctor.finding import Finding, Fix, Reach
from netdoctor.graph import Operation
from netdoctor.recording import Recording

_OPEN = frozenset({"cannot-overfit-tiny-batch", "loss-not-decreasing"})  # symptoms whose cause nobody named
# Functions of a weight that take away what it can be: its sign, its size.
_NARROWING = frozenset({"abs", "square", "exp", "relu", "sigmoid", "softplus", "tanh", "clamp", "clamp_min", "sign"})


def propose(
    recording: Recording, step: TrainingStep, places: Places, finding: Finding
) -> Iterator[tuple[Fix, Treatment]]:
    """Fixes to be tried, with their treatments."""
    if finding.check in _OPEN:
        yield from _plain_weights(recording, places)


def _plain_weights(recording: Recording, places: Places) -> Iterator[tuple[Fix, Treatment]]:
    """The weights as they are, where the model uses a function of them that limits what it can express."""
    graph = recording.graph
    found = [
        o
        for o in ([] if graph is None else graph.operations)
        if o.name in _NARROWING and [graph.values[i].origin for i in o.inputs if graph is not None] == ["parameter"]
    ]
    if not found:
        return
    first = found[0]
    where = f" ({first.file.rpartition('/')[2]}:{first.line})" if first.file else ""
    says = f"Use the weights of {_listed(found)} as they are: {first.name} limits what they can be{where}."
    yield Fix("plain-weights", says, "", Reach.MODEL), Treatment(lambda bench: _leave_out(bench, places, found))


def _listed(found: list[Operation]) -> str:
    names = list(dict.fromkeys(o.module or "the model" for o in found))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _leave_out(bench: Bench, places: Places, found: list[Operation]) -> None:
    exchanges = []
    for operation in found:
        original = places.module(operation.module)
        module = None if original is None else bench.copy_of(original)
        exchanges.append(Exchange(module, frozenset({operation.name}), _unless_weight))
    exchange_operations(bench, exchanges)


def _unless_weight(func: Any, args: Any, kwargs: Any) -> Any:
    given = first_argument(args, kwargs)
    return given if isinstance(given, nn.Parameter) else func(*args, **kwargs)
