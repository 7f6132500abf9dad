"""Terms of a loss that weigh the log-probability of a random draw, and whether the weight can know what was drawn.

For a ~ p, the expectation of weight · ∇log p(a) is 0 where the weight does not depend on a (Williams 1992).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

from netdoctor.checks.loss.comparisons import RESHAPES
from netdoctor.graph import Draw, Operation, StepGraph, Value

_ADDING = frozenset({"add", "sub", "rsub", "subtract", "iadd", "isub", "radd", "neg", "negative"})
_GATHERED = "sum mean stack cat concat concatenate hstack vstack where masked_fill masked_select detach"
_GATHERING = frozenset(_GATHERED.split()) | RESHAPES
_WEIGHING = frozenset({"mul", "rmul", "imul", "multiply", "matmul", "dot", "inner", "einsum", "mv", "mm", "bmm"})
_DIVIDING = frozenset({"div", "idiv", "divide", "true_divide"})
# What a clipped surrogate makes of a difference of log-probabilities.
_RATIO = frozenset({"exp", "clamp", "clip", "min", "minimum", "max", "maximum"})
# What may show another tensor's memory, so that the content is as old as that one's. Taken by a tensor of indices it is a copy.
_VIEWS = (RESHAPES | {"detach", "unbind"}) - {"index_select", "gather", "take_along_dim", "clone"}
_SHARING = frozenset({"as_tensor", "asarray", "frombuffer", "from_dlpack"})  # memory with what is no tensor
# Each result is of one argument, and torch may hand on the very tensor that it was given.
_SIDE_BY_SIDE = frozenset({"broadcast_tensors"})
_LEAVING = frozenset({"numpy", "array", "tolist"})
# From a model's output to what an action is chosen by.
_CHOOSING = frozenset({"softmax", "log_softmax", "sigmoid", "exp", "sub", "div", "detach", "logsumexp"}) | RESHAPES


@dataclass(frozen=True, slots=True)
class Term:
    """A log-probability of a draw that a loss weighs. `ratio`: it goes into a ratio with one that was there before."""

    graph: StepGraph
    draw: Operation
    log_prob: Operation
    before: bool  # all that weighs it was there before the draw; else nothing reads the draw but its log-probability
    ratio: bool
    carried: Operation | None  # the draw, or the choice, that was carried out
    count: int = 1  # of such terms in the loss, from the same line


@dataclass(frozen=True, slots=True)
class _Path:
    """How a log-probability goes into the loss: what is multiplied with it, number by number or as a whole."""

    weights: frozenset[int]
    constants: frozenset[int]  # that select in it, divide it, or are taken away from it
    scale: float
    ratio: bool


def noise_terms(graph: StepGraph) -> list[Term]:
    """The terms that cannot tell which draw was good, one for each line: all draws whose log-probability it takes are such ones."""
    behind, lines = graph.values_behind(by_gradient=True), defaultdict[tuple[str, int], list[tuple[Draw, int]]](list)
    for draw in graph.draws:
        for value in draw.log_probs:
            made = graph.producer(value)
            if made is not None and value in behind:
                lines[made.file, made.line].append((draw, value))
    return [term for pairs in lines.values() if (term := _term(graph, pairs)) is not None]


def _term(graph: StepGraph, pairs: list[tuple[Draw, int]]) -> Term | None:
    paths, fixed, read = list[_Path](), True, False
    for draw, value in pairs:
        path, drawn = _path(graph, draw, value), graph.producer(draw.value)
        if path is None or drawn is None:
            return None
        paths.append(path)
        fixed = fixed and all(_fixed(graph, weight, drawn) for weight in path.weights | path.constants)
        read = read or _read(graph, draw, value)
        if read and not fixed:
            return None
    scales = {path.scale for path in paths}
    if len(scales) < 2 and not any(_varies(graph.values[weight]) for path in paths for weight in path.weights):
        return None
    before, carried = fixed and len(scales) == 1, [_carried(graph, draw) for draw, _ in pairs]
    drawn, made = graph.producer(pairs[0][0].value), graph.producer(pairs[0][1])
    if drawn is None or made is None or (not before and (read or None in carried)):
        return None
    first = carried[0] if carried[0] is not None or not before else _first_carried(graph)
    return Term(graph, drawn, made, before, any(path.ratio for path in paths), first, len(pairs))


def _varies(weight: Value) -> bool:
    """Whether a weight differs from sample to sample. Two levels, one of them 0, are a mask: their variance is the largest that a
    mean between such bounds allows (Bhatia and Davis 2000)."""
    spread = weight.std * weight.std
    mask = weight.low == 0 and math.isclose(spread, weight.mean * (weight.high - weight.mean), rel_tol=1e-5)
    return math.prod(weight.shape) > 1 and weight.std > 1e-6 * max(abs(weight.low), abs(weight.high)) and not mask


def _path(graph: StepGraph, draw: Draw, value: int) -> _Path | None:
    """The way to the loss; None where the loss knows the draw in another way, too, or the way is another than is known here."""
    stops = frozenset(draw.log_probs)
    if not _after(graph, draw.value, stops).isdisjoint(_behind(graph, stops)):
        return None
    after = _after(graph, value, frozenset())
    weights, constants, factors, bent, taken = set[int](), set[int](), list[float](), False, False
    for operation in graph.loss_operations():
        ours = [i for i in operation.inputs if i in after]
        others = {i for i in operation.inputs if i not in after}
        if not ours:
            continue
        if operation.name in _WEIGHING and len(ours) == 1:
            weights |= others
            factors += [graph.values[i].mean for i in others if not graph.values[i].shape] + _numbers(operation)
        elif operation.name in _DIVIDING and ours == [operation.inputs[0]]:
            constants |= others
        elif operation.name in _GATHERING:
            constants |= {i for i in others if graph.values[i].dtype == "bool"}
        elif operation.name in _RATIO:
            bent = True
        elif operation.name not in _ADDING:
            return None
        if operation.name in ("sub", "subtract") and others:
            taken, constants = True, constants | others
    scale = reduce(lambda one, other: one * other, factors, 1.0)
    return None if bent and not taken else _Path(frozenset(weights), frozenset(constants), scale, bent)


def _numbers(operation: Operation) -> list[float]:
    return [float(a) for a in operation.attributes.values() if isinstance(a, int | float) and not isinstance(a, bool)]


def _after(graph: StepGraph, value: int, stops: frozenset[int]) -> set[int]:
    """A value and all that depends on it, not by way of `stops`."""
    seen, queue = {value}, [value]
    while queue:
        value = queue.pop()
        for reader in graph.consumers(value):
            made = reader.outputs
            if reader.name in _SIDE_BY_SIDE and len(made) == len(reader.inputs):
                made = tuple(out for out, given in zip(made, reader.inputs, strict=True) if given == value)
            fresh = [out for out in made if out not in seen and out not in stops]
            seen.update(fresh)
            queue += fresh
    return seen


def _behind(graph: StepGraph, stops: frozenset[int]) -> set[int]:
    """The values that the loss depends on, not by way of `stops`."""
    queue = [] if graph.loss is None else [graph.loss]
    seen = set(queue)
    while queue:
        value = queue.pop()
        made = graph.producer(value)
        given = () if made is None else made.inputs
        if made is not None and made.name in _SIDE_BY_SIDE and len(given) == len(made.outputs):
            given = (given[made.outputs.index(value)],)
        fresh = [i for i in given if i not in seen and i not in stops]
        seen.update(fresh)
        queue += fresh
    return seen


def _fixed(graph: StepGraph, weight: int, draw: Operation) -> bool:
    """Whether a value was computed from what was there before the draw, and nothing can have changed that since."""
    queue, seen = [weight], {weight}
    while queue:
        value = queue.pop()
        if value in graph.rewritten or _exported(graph, value):
            return False
        made = graph.producer(value)
        if made is None:
            if graph.values[value].origin != "parameter" and value > draw.outputs[0]:
                return False
            continue
        copied = made.name not in _VIEWS or (made.name == "getitem" and len(made.inputs) > 1)
        if made.name in _SHARING or (made.index > draw.index and not made.inputs):
            return False
        if made.index > draw.index or not copied:
            fresh = [i for i in made.inputs if i not in seen]
            seen.update(fresh)
            queue += fresh
    return True


def _exported(graph: StepGraph, value: int) -> bool:
    """Whether another library may write into a value's memory."""
    return value in graph.taken or any(
        reader.name in _LEAVING - {"tolist"}
        or (reader.name in _VIEWS and any(_exported(graph, made) for made in reader.outputs if made > value))
        for reader in graph.consumers(value)
    )


def _read(graph: StepGraph, draw: Draw, value: int) -> bool:
    """Whether something may read the draw, or its log-probability before that is a part of the loss."""
    ending = frozenset() if graph.loss is None else frozenset({graph.loss})
    made = None if graph.loss is None else graph.producer(graph.loss)
    region = _after(graph, draw.value, frozenset(draw.log_probs)) | _after(graph, value, ending)
    return _leaves(graph, region, len(graph.operations) if made is None else made.index)


def _leaves(graph: StepGraph, values: Iterable[int], end: int) -> bool:
    """Whether the content of one of these values goes to Python, another library, or out of sight before an operation."""
    taken = frozenset(graph.taken)
    return any(
        value in taken or any(not reader.outputs and reader.index < end for reader in graph.consumers(value))
        for value in values
    )


def _first_carried(graph: StepGraph) -> Operation | None:
    """The first draw that something reads beside its log-probability: an environment, numpy, another part of the loss."""
    return next((graph.producer(draw.value) for draw in graph.draws if _used(graph, draw)), None)


def _used(graph: StepGraph, draw: Draw) -> bool:
    stops = frozenset(draw.log_probs)
    region = _after(graph, draw.value, stops)
    return _leaves(graph, region, len(graph.operations)) or not region.isdisjoint(_behind(graph, stops))


def _carried(graph: StepGraph, draw: Draw) -> Operation | None:
    """What was carried out in the place of a draw: another draw from the same distribution, or for the same observation; or what
    chose by the same probabilities, the best one or numpy."""
    source = set(_sources(graph, draw.value))
    for other in graph.draws:
        if other is not draw and not source.isdisjoint(_sources(graph, other.value)) and _used(graph, other):
            return graph.producer(other.value)
    own = {draw.value, *draw.log_probs}
    for operation in graph.named(_LEAVING | {"argmax"}):
        given = operation.inputs[:1]
        if own.isdisjoint(given) and any(not source.isdisjoint(_sources(graph, value)) for value in given):
            region = {made for value in operation.outputs for made in _after(graph, value, frozenset())}
            if operation.name != "argmax" or _leaves(graph, region, len(graph.operations)):
                return operation
    return None


def _sources(graph: StepGraph, value: int) -> Iterator[int]:
    """A value and those that it was chosen by, back to the model, and what the model was given."""
    queue, seen = [value], {value}
    while queue:
        at = queue.pop()
        made = graph.producer(at)
        yield at
        if made is None or not (at == value or made.inside or made.name in _CHOOSING):
            continue
        kept = [i for i in made.inputs if graph.values[i].origin != "parameter" and i not in seen]
        seen.update(kept)
        queue += kept
