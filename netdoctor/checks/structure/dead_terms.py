"""Terms of a loss that depend on trained parameters by their numbers only: they count, and no gradient goes through them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

from netdoctor.checks.loss.comparisons import RESHAPES, graphs
from netdoctor.checks.structure.cuts import INDICES, Cut
from netdoctor.checks.structure.derivatives import without_graph
from netdoctor.checks.structure.gradients import owned, reached, reached_anywhere
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

_SUMS = frozenset({"add", "iadd", "radd", "sub", "isub", "rsub"})
_SCALED = frozenset({"mul", "rmul", "imul", "multiply", "div", "truediv", "divide", "true_divide"})
_ALONG = RESHAPES | {"mean", "sum", "nanmean", "nansum", "neg", "negative"}
_LISTS = frozenset({"stack", "cat", "concat", "concatenate", "hstack"})
_NUMBERS = frozenset({"item", "float", "__float__", "tolist"})
EQUAL = 1e-5  # relative, of a number in single precision that was read by `.item()`
EXACT = 1e-9  # of its product with a coefficient, in double precision


@dataclass(frozen=True, slots=True)
class DeadTerm:
    """A term without gradient. `operation` is where it is made, `joins` where it is added; `made` are the nearest
    operations that made its factors without a graph. The cut's names are the parameters that it depends on."""

    operation: Operation
    joins: Operation
    cut: Cut
    made: tuple[Operation, ...]


def dead_terms(recording: Recording) -> Iterator[DeadTerm]:
    """The terms of all captured losses that carry no gradient though an optimizer trains what they are made of; each line once.

    A graph that has cut parameters off from every loss is another matter (detached-graph), and so is a derivative.
    """
    found: dict[tuple[str, int], DeadTerm] = {}
    reach, known = reached_anywhere(recording), list(graphs(recording))
    for graph in known:
        others = [other for other in known if other is not graph]
        for term in _Sum(graph).dead():
            held = [p.name for p in recording.parameters.values() if p.name in term.cut.names and owned(recording, p)]
            own = held and reach.issuperset(held) and not _of_another(graph, others, held)
            if own and not _elsewhere(others, term):
                told = replace(term, cut=Cut(term.cut.operation, tuple(held)))
                found.setdefault((term.operation.file, term.operation.line), told)
    yield from found.values()


def _of_another(graph: StepGraph, others: list[StepGraph], names: list[str]) -> bool:
    """Whether another loss of the same step trains these parameters: a constant of a critic may be in the generator's loss."""
    here = _ending(graph)
    return any(o.step == graph.step and _ending(o) != here and reached(o).issuperset(names) for o in others)


def _ending(graph: StepGraph) -> tuple[str, int]:
    made = None if graph.loss is None else graph.producer(graph.loss)
    return ("", 0) if made is None else (made.file, made.line)


def _elsewhere(others: list[StepGraph], term: DeadTerm) -> bool:
    """Whether what was cut has a `backward` of its own, or the term's line carries a gradient in another step."""
    for graph in others:
        live = {i for i in graph.values_behind(by_gradient=True) if graph.values[i].origin == "operation"}
        for operation in graph.operations:
            same = operation.identity == term.cut.operation.identity
            line = (operation.file, operation.line, operation.name)
            again = line == (term.operation.file, term.operation.line, term.operation.name)
            again = again and term.operation is not term.joins
            if (same and live.intersection(operation.inputs)) or (again and live.intersection(operation.outputs)):
                return True
    return False


class _Sum:
    """The sum that a loss is, along its gradient."""

    def __init__(self, graph: StepGraph) -> None:
        self._graph, self._values = graph, graph.values
        self._live, self._behind = graph.values_behind(by_gradient=True), graph.values_behind(by_gradient=False)
        self._terms: list[int] = []  # values with a gradient, that the sum is made of
        self._dead: list[tuple[int, Operation]] = []
        self._numbers: list[Operation] = []  # sums with a number

    def dead(self) -> Iterator[DeadTerm]:
        """Its terms without a gradient."""
        if self._graph.loss is None or not self._values[self._graph.loss].requires_grad:
            return
        self._walk(self._graph.loss)
        for value, joins in self._dead:
            made, cut = self._graph.producer(value), self._cut(value)
            if made is not None and cut is not None and not self._meant(value, cut):
                sources = [self._source(part) for part in self._factors(value) or [value]]
                yield DeadTerm(made, joins, cut, tuple(source for source in sources if source is not None))
        for joins in self._numbers:
            left = self._left(joins)
            if left is not None:
                yield DeadTerm(joins, joins, Cut(left, self._named(left.inputs[0])), (left,))

    def _walk(self, loss: int) -> None:
        queue, seen = [loss], set[int]()
        while queue:
            value = queue.pop()
            made = self._graph.producer(value)
            if made is None or made.index in seen or self._values[value].leaf:
                continue
            seen.add(made.index)
            name = made.name.strip("_")
            live = [i for i in made.inputs if self._values[i].requires_grad]
            if name in _SUMS or name in _LISTS:
                self._terms += live
                factor = made.attributes.get("alpha", 1)
                self._dead += [(i, made) for i in made.inputs if factor != 0 and self._is_dead(i)]
                self._numbers += [made] if name in _SUMS and len(made.inputs) == 1 else []
                queue += live
            elif name in _ALONG or (name in _SCALED and len(live) == 1 and not self._weighs(made)):
                queue += live

    def _weighs(self, operation: Operation) -> bool:
        """Whether something trained is a factor, or a coefficient is zero: what is added there may be anything."""
        zero = any(value == 0 for value in operation.attributes.values() if isinstance(value, int | float))
        others = (self._values[i] for i in operation.inputs if not self._values[i].requires_grad)
        return zero or any(value.trained or (value.low == value.high == 0) for value in others)

    def _is_dead(self, index: int) -> bool:
        value = self._values[index]
        return value.trained and not value.requires_grad and not value.integral and not value.low == value.high == 0

    def _cut(self, value: int) -> Cut | None:
        """What cut it: the nearest operation that lost a gradient. None for indices, and for derivatives without a graph."""
        for operation in self._graph.ancestors(value):
            given = any(self._values[i].requires_grad for i in operation.inputs)
            if given and not any(self._values[i].requires_grad for i in operation.outputs):
                derived = operation.name in INDICES or without_graph(operation)
                return None if derived else Cut(operation, self._named(value))
        return None

    def _named(self, value: int) -> tuple[str, ...]:
        """The parameters that a value depends on."""
        read = [value, *(i for operation in self._graph.ancestors(value) for i in operation.inputs)]
        origin = (self._values[i] for i in read)
        return tuple(dict.fromkeys(v.name for v in origin if v.origin == "parameter" and v.requires_grad and v.name))

    def _meant(self, value: int, cut: Cut) -> bool:
        """Whether the number goes with a term that has a gradient: one is made of the other, as in x + (y - x).detach() and in the
        largest score that a log-sum-exp takes out and adds again; or the live sum reads a part of it, as of -p log q + p log p."""
        behind = {i for operation in self._graph.ancestors(value) for i in operation.inputs}
        if behind.intersection(term for term in self._terms if self._values[term].origin == "operation"):
            return True
        return self._shared(value) or any(self._reads(part, self._live) for part in self._factors(value))

    def _shared(self, value: int) -> bool:
        """Whether the loss reads the value, or what it is made of along operations of one tensor, in another place as well."""
        chain = {value}
        while True:
            if self._reads(value, self._behind, but=chain):
                return True
            trained = self._trained(value)
            if len(trained) != 1:
                return False
            value = trained[0]
            chain.add(value)

    def _factors(self, value: int) -> list[int]:
        """The factors of the first product or difference that a value is made of, along operations of one tensor."""
        while len(trained := self._trained(value)) == 1:
            value = trained[0]
        return trained

    def _trained(self, value: int) -> list[int]:
        """What the operation that made a value reads of trained tensors without a gradient."""
        made = self._graph.producer(value)
        read = [] if made is None else [self._values[i] for i in dict.fromkeys(made.inputs)]
        return [v.index for v in read if v.trained and not v.requires_grad]

    def _reads(self, value: int, wanted: frozenset[int], but: Set[int] = frozenset()) -> bool:
        """Whether an operation that is neither a sum of the loss nor makes one of `but` makes a wanted value of this one."""
        joins = {operation.index for part, operation in self._dead if part == value}
        readers = (reader for reader in self._graph.consumers(value) if reader.index not in joins)
        return any(wanted.intersection(r.outputs) and but.isdisjoint(r.outputs) for r in readers)

    def _source(self, value: int) -> Operation | None:
        """The nearest operation that made its numbers without building a graph; reshapes and sums aside."""
        aside = (_ALONG | _LISTS | {"setitem"}) - {"gather", "index_select"}
        for operation in self._graph.ancestors(value):
            trained = any(self._values[i].trained for i in operation.inputs)
            if trained and operation.name not in aside and (not operation.grad_enabled or self._loses(operation)):
                return operation
        return None

    def _loses(self, operation: Operation) -> bool:
        return any(self._values[i].requires_grad for i in operation.inputs)

    def _left(self, joins: Operation) -> Operation | None:
        """The `.item()` that made the number that is added, if its tensor had a gradient that this loss does not have anyway."""
        for operation in self._graph.named(_NUMBERS):
            if not operation.inputs or operation.index > joins.index:
                continue
            value = self._values[operation.inputs[0]]
            numbers = [v for v in joins.attributes.values() if isinstance(v, float) and v != 0]
            same = any(_weighed(v, value.mean) for v in numbers)
            here = (operation.file, operation.line) == (joins.file, joins.line)
            if value.requires_grad and value.index not in self._live and numbers and (same or here):
                return operation
        return None


def _weighed(number: float, read: float) -> bool:
    """Whether a number is one that was read, or that times a coefficient as people write them: of three digits at most.

    Python multiplies in double precision, so that anything else comes near such a coefficient once in half a million times. A
    number that is itself written with three digits (`1.0 - dice`) tells nothing: it may stand in the code.
    """
    ratio = number / read if read else math.nan
    return not _written(number) and (math.isclose(number, read, rel_tol=EQUAL) or _written(ratio))


def _written(number: float) -> bool:
    return math.isclose(number, float(f"{number:.3g}"), rel_tol=EXACT)
