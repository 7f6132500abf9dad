"""Whether the target of a loss moves: it depends on weights, and no gradient flows back through it."""

from __future__ import annotations

from collections.abc import Iterator

from netdoctor.graph import Operation, StepGraph

_ARITHMETIC = frozenset(
    f"{before}{name}" for before in ("", "r", "i") for name in ("add", "sub", "mul", "div", "truediv")
)


def moving_target(graph: StepGraph) -> bool:
    """Whether the loss compares with something of that kind, such as a target network's output."""
    return any(_moves(graph, operation) for operation in graph.loss_operations())


def _moves(graph: StepGraph, operation: Operation) -> bool:
    """An operation whose value depends on weights and on data, though no gradient flows through it.

    What is made of weights alone (the scale of binary weights) is no target, and neither is what only sets off the very
    value that it came from: the maximum before an exponential, a straight-through estimator.
    """
    trained = any(graph.values[value].trained for value in operation.inputs)
    if not trained or not (operation.name == "detach" or (operation.inside and not operation.grad_enabled)):
        return False
    given = set(_given(graph, operation))
    return any(_is_data(graph, value) for value in given) and not _sets_off(graph, operation, given)


def _is_data(graph: StepGraph, value: int) -> bool:
    """Whether a value was made by no operation on others, and is no parameter or buffer."""
    producer = graph.producer(value)
    return not producer.inputs if producer is not None else graph.values[value].origin not in ("parameter", "buffer")


def _given(graph: StepGraph, operation: Operation) -> Iterator[int]:
    """The values that an operation's result depends on."""
    yield from operation.inputs
    for value in operation.inputs:
        for ancestor in graph.ancestors(value):
            yield from ancestor.inputs


def _sets_off(graph: StepGraph, operation: Operation, given: set[int]) -> bool:
    """Whether its result is only added to, or multiplied with, values that it came from."""
    readers = [reader for output in operation.outputs for reader in graph.consumers(output)]
    return bool(readers) and all(
        reader.name in _ARITHMETIC
        and any(value in given and graph.values[value].requires_grad for value in reader.inputs)
        for reader in readers
    )
