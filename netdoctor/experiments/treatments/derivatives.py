"""Treatment of derivatives in the loss that were taken without a graph: `torch.autograd.grad` is told to build one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.step import Replay
from netdoctor.checks.structure.derivatives import graphless
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
        for line in lines:
            exchange_on_line(bench, _NAMES, _with_graph, line)

    def lacking(bench: Bench) -> float:
        """How far the gradient of the weights is from the one that goes through the derivatives too."""
        own, other = _gradients(bench), Bench(bench.sandbox, bench.iterations)
        with other.stack:
            apply(other)
            whole = _gradients(other)
        lost = sum(float((a - b).square().sum()) for a, b in zip(whole, own, strict=True))
        size = sum(float(a.square().sum()) for a in whole)
        return 100 * math.sqrt(lost / size) if size else math.nan

    return Treatment(apply, measure=Measure("gradient that is off, of the whole", lacking, _ROUNDING, "%"))


def _with_graph(call: Any, args: Any, kwargs: Any) -> Any:
    """`grad(outputs, inputs, grad_outputs, retain_graph, create_graph, ...)`, and its graph stays."""
    others = {name: value for name, value in kwargs.items() if name not in ("retain_graph", "create_graph")}
    if len(args) > _BEFORE:
        return call(*args[:_BEFORE], True, True, *args[_OWN:], **others)
    return call(*args, retain_graph=True, create_graph=True, **others)


def _gradients(bench: Bench) -> list[Tensor]:
    loss = Replay(bench.sandbox.copies).loss(bench.iterations[0].backwards[0], bench.sandbox.edit)
    parameters = bench.sandbox.trainable()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True)]


TREATMENTS: dict[str, Maker] = {"create-graph": create_graph}
