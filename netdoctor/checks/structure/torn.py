"""Views and reshapes that tear an axis apart, those that belong to one mistake together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.structure.axes import RESHAPING, moved
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

_PRODUCTS = frozenset({"matmul", "bmm", "mm", "einsum", "baddbmm", "scaled_dot_product_attention"})


@dataclass(frozen=True, slots=True)
class Torn:
    """A view or reshape of sizes `given` to sizes `made`; the axis `axes[0]` of the former became `axes[1]` of the latter."""

    graph: StepGraph
    operation: Operation
    axes: tuple[int, int]

    @property
    def given(self) -> tuple[int, ...]:
        """The sizes before."""
        return self.graph.values[self.operation.inputs[0]].shape

    @property
    def made(self) -> tuple[int, ...]:
        """The sizes after."""
        return self.graph.values[self.operation.outputs[0]].shape

    @property
    def line(self) -> tuple[str, int]:
        """Where it stands."""
        return self.operation.file, self.operation.line


def faults(recording: Recording) -> list[list[Torn]]:
    """The torn axes behind the losses, in order of execution, each line once; those of one mistake in one list.

    One mistake: heads are split in several lines (queries, keys, values), which then meet in a product, and merged again in
    another one: of one module, over the same axes, and either multiplied with one another, or one undoes the other.
    """
    found: list[list[Torn]] = []
    for one in _torn(recording):
        belonging = [fault for fault in found if any(_belong(other, one) for other in fault)]
        found = [fault for fault in found if fault not in belonging]
        found.append([*(other for fault in belonging for other in fault), one])
    return sorted(found, key=lambda fault: fault[0].operation.index)


def _torn(recording: Recording) -> Iterator[Torn]:
    seen: set[tuple[str, int]] = set()  # lines: a block that stands ten times in a net has one fault
    for graph in graphs(recording):
        for operation in graph.named_behind(RESHAPING):
            line = (operation.file, operation.line)
            if line in seen or not operation.inputs or not operation.outputs:
                continue
            axes = moved(graph.values[operation.inputs[0]].shape, graph.values[operation.outputs[0]].shape)
            if axes is not None:
                seen.add(line)
                yield Torn(graph, operation, axes)


def _belong(one: Torn, other: Torn) -> bool:
    """Whether two, in order of execution, are one mistake."""
    if one.graph is not other.graph or one.operation.module != other.operation.module:
        return False
    if other.axes == one.axes[::-1] and (len(one.made), len(one.given)) == (len(other.given), len(other.made)):
        return one.operation.index in _behind(other.graph, other.operation.inputs[0])
    return other.axes == one.axes and len(one.made) == len(other.made) and _multiplied(one, other)


def _multiplied(one: Torn, other: Torn) -> bool:
    """Whether a product in their module is given one on one side, and the other on the other."""
    a, b, graph = one.operation.index, other.operation.index, one.graph
    for product in graph.named(_PRODUCTS):
        if product.index > b and product.module == one.operation.module:
            sides = [_behind(graph, value) for value in dict.fromkeys(product.inputs)]
            if any(a in side and b not in side for side in sides) and any(b in s and a not in s for s in sides):
                return True
    return False


def _behind(graph: StepGraph, value: int) -> set[int]:
    return {operation.index for operation in graph.ancestors(value)}
