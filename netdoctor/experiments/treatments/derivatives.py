"""Treatment of derivatives in the loss that were taken without a graph: `torch.autograd.grad` is told to build one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netdoctor.checks.structure.derivatives import graphless
from netdoctor.experiments.treatments.gradients import apart, with_and_without
from netdoctor.experiments.treatments.operations import exchange_on_line
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment

_ROUNDING = 1e-3  # of the gradient, in percent
_NAMES = frozenset({"grad"})
_BEFORE, _OWN = 3, 5  # arguments before `retain_graph` and `create_graph`, and with these two


def create_graph(case: Case) -> Treatment | None:
    """`create_graph=True` in the lines of the finding."""
    lines = [(operation.file, operation.line) for operation in graphless(case.recording) if operation.file]
    if not lines:
        return None

    def apply(bench: Bench) -> None:
        build_graphs(bench, lines)

    def lacking(bench: Bench) -> float:
        """How far the gradient of the weights is from the one that goes through the derivatives too."""
        own, whole = with_and_without(bench, apply)
        return apart(whole, own)

    return Treatment(apply, measure=Measure("gradient that is off, of the whole", lacking, _ROUNDING, "%"))


def build_graphs(bench: Bench, lines: Sequence[tuple[str, int]]) -> None:
    """`create_graph=True` in these lines of the user's."""
    for line in lines:
        exchange_on_line(bench, _NAMES, _with_graph, line)


def _with_graph(call: Any, args: Any, kwargs: Any) -> Any:
    """`grad(outputs, inputs, grad_outputs, retain_graph, create_graph, ...)`, and its graph stays."""
    others = {name: value for name, value in kwargs.items() if name not in ("retain_graph", "create_graph")}
    if len(args) > _BEFORE:
        return call(*args[:_BEFORE], True, True, *args[_OWN:], **others)
    return call(*args, retain_graph=True, create_graph=True, **others)


TREATMENTS: dict[str, Maker] = {"create-graph": create_graph}
