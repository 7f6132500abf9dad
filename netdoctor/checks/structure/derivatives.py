"""Derivatives in a loss that were taken without a graph: their numbers count, but no gradient goes through them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from netdoctor.checks.loss.comparisons import LOSSES, RESHAPES, graphs
from netdoctor.checks.structure.gradients import owned
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

_CALL, _NAMED = re.compile(r"\bgrad\("), re.compile(r"\s*\w+\s*=(?!=)")
_TERMS = frozenset({"add", "sub", "rsub", "subtract", "cat", "stack", "concat"}) | LOSSES  # what stands side by side
_FACTORS = frozenset({"mul", "div", "rdiv", "multiply", "divide", "true_divide"})
_SHAPING = "neg pow square abs sum mean norm vector_norm linalg_norm sqrt exp log sin cos cosh tanh clamp clip relu"
_ARITHMETIC = _TERMS | _FACTORS | RESHAPES | frozenset(_SHAPING.split())


def graphless(recording: Recording) -> list[Operation]:
    """The calls of `torch.autograd.grad` without `create_graph=True` whose results are terms of a loss, each line once.

    A term: on its way to the loss it is added to, or compared with, what trains the same parameters that the derivative depends
    on, and passes nothing but arithmetic. What scales a live term, or goes through a layer again, is no term.
    """
    found: dict[tuple[str, int], Operation] = {}
    for graph in graphs(recording):
        for operation in graph.named_behind({"grad"}):
            if without_graph(operation) and operation.grad_enabled:
                weights = _weights(recording, graph, operation)
                if weights and _is_term(graph, operation, weights):
                    found.setdefault((operation.file, operation.line), operation)
    return list(found.values())


def without_graph(operation: Operation) -> bool:
    """Whether it is a call of `torch.autograd.grad`, not a look at `x.grad`, that builds no graph."""
    return operation.name == "grad" and operation.attributes.get("create_graph") is False


def _weights(recording: Recording, graph: StepGraph, operation: Operation) -> frozenset[int]:
    """The trained parameters that the derivative is of. None where it is with respect to them, or to what they make: such gradients
    are those of steps, of features, of attacks on embeddings."""
    if len(operation.inputs) < 2 or any(parameters_behind(graph, value) for value in operation.inputs[1:]):
        return frozenset()
    held, failed = recording.parameters, "does not require grad" in recording.header.ended
    found = parameters_behind(graph, operation.inputs[0])
    named = ((value, held.get(graph.values[value].name)) for value in found)
    return frozenset(
        value for value, parameter in named if parameter is not None and (failed or owned(recording, parameter))
    )


def parameters_behind(graph: StepGraph, value: int) -> frozenset[int]:
    """The parameters that a value depends on by gradient."""
    seen: set[int] = set()
    queue = [value]
    while queue:
        at = queue.pop()
        if at not in seen and graph.values[at].requires_grad:
            seen.add(at)
            made = graph.producer(at)
            queue.extend(() if made is None else made.inputs)
    return frozenset(at for at in seen if graph.values[at].origin == "parameter")


def _is_term(graph: StepGraph, operation: Operation, weights: frozenset[int]) -> bool:
    queue = deque((value, False) for value in operation.outputs if not graph.values[value].requires_grad)
    seen, behind = set(queue), graph.values_behind(by_gradient=False)
    while queue:
        value, met = queue.popleft()
        if value == graph.loss:
            return met or not graph.values[value].requires_grad
        readers = [reader for reader in graph.consumers(value) if not behind.isdisjoint(reader.outputs)]
        if not met and any(reader.name not in _ARITHMETIC for reader in readers):
            continue  # an input of a layer, that was moved by its gradient, may be compared with something as well
        for reader in readers:
            for made in _made(graph, reader, value, met, weights):
                if made not in seen:
                    seen.add(made)
                    queue.append(made)
    return False


def _made(
    graph: StepGraph, reader: Operation, value: int, met: bool, weights: frozenset[int]
) -> Iterator[tuple[int, bool]]:
    """What an operation makes of a term, and whether it has met by then what trains the same parameters."""
    if reader.name not in _ARITHMETIC:
        return
    live = frozenset().union(*(parameters_behind(graph, i) for i in reader.inputs if i != value and not met))
    if live and (reader.name not in _TERMS or weights.isdisjoint(live)):
        return
    met = met or bool(live)
    yield from ((made, met) for made in reader.outputs)


def with_graph(text: str) -> str:
    """The line with `create_graph=True` in its calls of grad; the general form where the line does not hold all of a call."""
    changed, start = text, 0
    while (call := _CALL.search(changed, start)) is not None:
        parts = _arguments(changed, call.end())
        if not parts:
            break
        end = call.end() + len(",".join(parts))
        graphed = any(re.fullmatch(r"\s*create_graph\s*=\s*True\s*", part) for part in parts)
        inside = changed[call.end() : end] if graphed else ",".join(_with_graph(parts))
        changed, start = f"{changed[: call.end()]}{inside}{changed[end:]}", call.end()
    return changed if changed != text else "torch.autograd.grad(..., create_graph=True)"


def _with_graph(parts: list[str]) -> list[str]:
    named = [part for part in parts if _NAMED.match(part)]
    others = [part for part in named if not re.match(r"\s*(?:retain|create)_graph\b", part)]
    given = [part for part in parts if not _NAMED.match(part) and part.strip()]
    return [*given[:3], *others, " create_graph=True"]  # the fourth and the fifth are these two


def _arguments(text: str, start: int) -> list[str]:
    """The texts between the commas of a call that begins here; none where it does not end on the line."""
    parts, depth, begin = [], 0, start
    for at, letter in enumerate(text[start:], start):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0 or (letter == "," and depth == 0):
            parts.append(text[begin:at])
            begin = at + 1
        if depth < 0:
            return parts
    return []
