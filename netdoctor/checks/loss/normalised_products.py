"""Products of two normalised tensors, which are cosines only where both were normalised along what the product sums over."""

from __future__ import annotations

from collections.abc import Iterator

from netdoctor.checks.loss.comparisons import RESHAPES, place
from netdoctor.checks.numerics.rewriting import Edit, rewrite
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import SourceLine

NORMALIZE = "normalize"
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "linear"})
_THROUGH = RESHAPES | {"cat", "concat", "stack", "mul", "div", "truediv"}


def off_axis(graph: StepGraph) -> Iterator[tuple[Operation, int, int]]:
    """(normalize, the dimension that it takes, the one that a product of two normalised tensors sums over), from the end.

    Only where sizes leave no doubt which dimension of what was normalised the product sums over: not the first, samples.
    """
    for product in graph.named_behind(_PRODUCTS):
        if len(product.inputs) < 2:
            continue
        sources = [_normalised(graph, value) for value in product.inputs[:2]]
        summed = graph.values[product.inputs[0]].shape[-1:]
        for operation in dict.fromkeys(s.index for s in sources if s is not None) if all(sources) else ():
            found = graph.operations[operation]
            shape = graph.values[found.inputs[0]].shape
            taken = _taken(found, len(shape))
            fitting = [dim for dim in range(-1, -len(shape), -1) if shape[dim : dim + 1 or None] == summed]
            if len(shape) > 2 and taken is not None and len(fitting) == 1 and fitting[0] != taken:
                yield found, taken, fitting[0]


def _normalised(graph: StepGraph, value: int) -> Operation | None:
    """The `normalize` that a value comes from, layout and scale aside."""
    operation = graph.producer(value)
    while operation is not None and operation.inputs and operation.name in _THROUGH:
        operation = graph.producer(operation.inputs[0])
    return operation if operation is not None and operation.name == NORMALIZE and operation.inputs else None


def _taken(operation: Operation, size: int) -> int | None:
    dim = operation.attributes.get("dim", operation.attributes.get("2", 1))
    known = isinstance(dim, int) and not isinstance(dim, bool) and -size <= dim < size
    return None if not known else int(dim) if int(dim) < 0 else int(dim) - size


def of_normalised(
    check: str, treatment: str, graph: StepGraph, operation: Operation, taken: int, summed: int
) -> Finding:
    """The finding that a tensor was normalised along `taken`, and is multiplied along `summed`."""
    shape = graph.values[operation.inputs[0]].shape
    source = SourceLine(operation.file, operation.line, operation.text) if operation.file else None
    own = None if "2" in operation.attributes else rewrite(operation.text, NORMALIZE, Edit(keyword=f"dim={summed}"))
    code = own or f"F.normalize(x, dim={summed})"
    return Finding(
        check,
        f"normalize in {place(operation)} takes dimension {len(shape) + taken} of {shape}, and is multiplied along "
        f"dimension {len(shape) + summed}",
        Severity.WARNING,
        "Its vectors do not have length 1, so that products of two of them are no cosines: they grow with the "
        f"{shape[summed]} features. Without dim it takes dimension 1.",
        Location.at(source, operation.module or None, NORMALIZE, step=0),
        (
            Evidence(
                "dimensions between the one normalised and the one multiplied along", abs(taken - summed), ">", 0.0
            ),
        ),
        (Fix(treatment, "Normalise along the features.", code, Reach.MODEL),),
        first_step=0,
        share=1.0,
    )
