"""The factor by which logits are multiplied on their way into a cross-entropy, and where it is made."""

from __future__ import annotations

import ast
import math
import re
from collections import deque
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, RESHAPES, Comparison, comparisons
from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of
from netdoctor.checks.signal.initialisation import expression
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording, SourceLine

USUAL, LARGEST = 1 / 0.07, 100.0  # CLIP's first scale, and where it clips it
_PRODUCTS = frozenset({"matmul", "bmm", "mm", "einsum", "linear"})
_TIMES = frozenset({"mul", "rmul", "imul", "multiply"})
_OVER = frozenset({"div", "truediv", "idiv", "divide", "true_divide"})
_THROUGH = RESHAPES | _TIMES | _OVER | {"log_softmax", "masked_fill", "add", "sub", "neg", "cat", "stack"}


@dataclass(frozen=True, slots=True)
class LogitScale:
    """One factor: the comparison that reads the logits, the operation that multiplies, its size, the parameter behind it ("" for
    none), whether that is exponentiated first, and its value."""

    pair: Comparison
    operation: Operation
    size: float
    parameter: str = ""
    exponentiated: bool = False
    value: float = math.nan

    def made(self) -> SourceLine | None:
        """The user's line that makes the parameter, where it is among the captured operations; else that of the factor."""
        attribute = self.parameter.rpartition(".")[2]
        assigned = re.compile(rf"(self\.)?{re.escape(attribute)}\s*(:[^=]+)?=(?!=)")
        for operation in self.pair.graph.operations if attribute else ():
            if operation.file and assigned.match(operation.text):
                return SourceLine(operation.file, operation.line, operation.text)
        own = self.operation
        return SourceLine(own.file, own.line, own.text) if own.file else None


def largest_scale(recording: Recording) -> LogitScale | None:
    """The largest factor of the logits of a plain cross-entropy in the first step; None where there is none."""
    found = [
        scale
        for pair in comparisons(recording)
        if pair.graph.step == 0 and pair.operation.name == CROSS_ENTROPY and len(pair.operation.inputs) == 2
        for scale in _factors(pair)
    ]
    return max(found, key=lambda scale: scale.size, default=None)


def _factors(pair: Comparison) -> list[LogitScale]:
    graph, found = pair.graph, list[LogitScale]()
    queue, seen = deque([pair.prediction.index]), set[int]()
    while queue:
        made = graph.producer(queue.popleft())
        if made is None or made.index in seen:
            continue
        seen.add(made.index)
        name = made.name.strip("_")
        product = name in _PRODUCTS and all(graph.values[i].origin != "parameter" for i in made.inputs)
        if product or name in _THROUGH:
            found += _factor(pair, made)
            queue.extend(i for i in made.inputs if math.prod(graph.values[i].shape) > 1)
    return found


def _factor(pair: Comparison, operation: Operation) -> list[LogitScale]:
    name, graph = operation.name.strip("_"), pair.graph
    if name not in _TIMES | _OVER or operation.attributes.get("reflected"):
        return []
    numbers = [v for v in operation.attributes.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    single = [i for i in operation.inputs if math.prod(graph.values[i].shape) == 1]
    if len(numbers) + len(single) != 1 or (single and name in _OVER and operation.inputs[0] in single):
        return []
    number = abs(float(numbers[0])) if numbers else abs(graph.values[single[0]].mean)
    size = number if name in _TIMES else 1 / number if number > 0 else math.nan
    if not single:
        return [LogitScale(pair, operation, size)]
    parameter, exponentiated = _parameter(graph, single[0])
    at = graph.values[parameter] if parameter is not None else None
    held = ("", math.nan) if at is None else (at.name, at.mean)
    return [LogitScale(pair, operation, size, held[0], exponentiated, held[1])]


def _parameter(graph: StepGraph, value: int) -> tuple[int | None, bool]:
    """The parameter behind a number, along operations of one tensor, and whether it is exponentiated on the way."""
    exponentiated = False
    while (made := graph.producer(value)) is not None and len(made.inputs) == 1:
        exponentiated, value = exponentiated or made.name.strip("_") == "exp", made.inputs[0]
    return (value if graph.values[value].origin == "parameter" else None), exponentiated


def wanted(found: LogitScale) -> float:
    """The factor that the fix begins with: what was exponentiated by mistake, where that is a usual scale; else CLIP's first."""
    return found.value if found.exponentiated and 1 < found.value <= LARGEST else USUAL


def smaller(recording: Recording, found: LogitScale) -> tuple[str, str]:
    """What to do about it in one sentence, and the line."""
    if not found.parameter:
        return "Take a factor of about 14 (a temperature of 0.07), or less.", f"logits = {USUAL:.3g} * scores"
    start = f"{math.log(wanted(found)):.3g}" if found.exponentiated else f"{USUAL:.3g}"
    code = f"torch.nn.init.constant_({expression(recording, found.parameter)}, {start})"
    if not found.exponentiated:
        return "Start with a smaller scale.", code
    source = found.made()
    logarithm = rewrite_where(source.text, _logarithm) if source is not None and wanted(found) == found.value else None
    return "Store the logarithm of the scale, as it is exponentiated.", logarithm or code


def _logarithm(node: ast.expr, line: str) -> str | None:
    """`torch.tensor(x)` as `torch.tensor(math.log(x))`."""
    call = call_of(node)
    if call is None or call[0] not in {"tensor", "as_tensor", "full"} or not call[1] or not isinstance(node, ast.Call):
        return None
    whole, value = source_of(node, line), source_of(call[1][-1], line)
    return whole.replace(value, f"math.log({value})", 1)
