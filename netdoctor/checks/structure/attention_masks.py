"""Where a captured step hides keys from an attention: masks given to torch's own functions, or filled in before a softmax."""

from __future__ import annotations

from netdoctor.graph import Operation, StepGraph, Value

TORCHS_OWN = frozenset({"multi_head_attention_forward", "scaled_dot_product_attention"})
FILLS = frozenset({"masked_fill", "where", "setitem"})
SUMS = frozenset({"add", "iadd", "sub", "isub"})
BY_HAND = FILLS | SUMS
LOW = -50.0  # or less is what a mask puts in place of a score: exp(-50) is nothing beside exp(0)
_SOFTMAXES = frozenset({"softmax", "log_softmax"})
_LAYOUT = """
view reshape flatten unflatten squeeze unsqueeze transpose permute contiguous getitem float to type type_as
div truediv mul imul clamp
"""
_THROUGH = BY_HAND | frozenset(_LAYOUT.split())


def masks(graph: StepGraph) -> list[Operation]:
    """The operations that hide keys of an attention, in order of execution."""
    found = [o for o in graph.named(TORCHS_OWN) if any(_is_mask(graph.values[i]) for i in o.inputs)]
    for operation in graph.named(BY_HAND):
        operands = [graph.values[i] for i in operation.inputs]
        if operation.name in FILLS:
            hides = any(value.dtype == "bool" for value in operands)
        else:
            hides = len(operands) == 2 and any(_is_mask(value, operation.name) for value in operands)
        if hides and operation.outputs and graph.values[operation.outputs[0]].trained and _scores(graph, operation):
            found.append(operation)
    return sorted(found, key=lambda operation: operation.index)


def _scores(graph: StepGraph, operation: Operation) -> bool:
    return graph.follow(operation, lambda o: o.name in _SOFTMAXES, _THROUGH) is not None


def _is_mask(value: Value, operation: str = "") -> bool:
    """A boolean, or numbers of which some take a score away and none adds to one."""
    if value.dtype == "bool":
        return not operation
    low, high = (-value.high, -value.low) if operation in {"sub", "isub"} else (value.low, value.high)
    return not value.trained and bool(value.shape) and (not value.finite or low <= LOW) and not high > 0
