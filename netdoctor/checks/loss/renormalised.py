"""Where probabilities are taken for scores: what a softmax made is made log-probabilities again, for the loss.

`torch.distributions.Categorical(logits=...)` and its kin take the logsumexp off what they are given, as hand-written policies do;
`log_softmax` does both at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import RESHAPES, dimension, graphs, maker
from netdoctor.graph import Operation, StepGraph, Value
from netdoctor.recording import Recording

_SOFTMAXES = frozenset({"softmax", "softmin"})
_NORMALISING = frozenset({"log_softmax", "logsumexp"})
_DIFFERENCES = frozenset({"sub", "subtract"})
_SAME = RESHAPES | {"broadcast_tensors", "clamp", "neg"}  # what log-probabilities pass on their way to their use
_PROBABILITIES = frozenset({"exp", "softmax"})  # what makes probabilities of them again
# A learned temperature that starts near 1; at 5 and more ten classes can be told apart well enough by probabilities alone
# (e^5 to 9: a loss of 0.06), and a model that starts so, as contrastive ones do with 14, may mean it.
SHARPEST = 3.0


@dataclass(frozen=True, slots=True)
class Renormalised:
    """Probabilities, the operation that made them, and the one that takes them for scores."""

    maker: Operation
    operation: Operation
    given: Value
    tempered: bool  # by a learned temperature in between


def renormalised(recording: Recording) -> Iterator[Renormalised]:
    """Every such place that a loss depends on by gradient, each line once, in order of execution."""
    seen: set[tuple[str, str, int, str, int]] = set()
    for graph in graphs(recording):
        for operation in graph.named_behind(_NORMALISING):
            found = _renormalised(graph, operation)
            if found is not None:
                made = found.maker
                key = made.module, made.file, made.line, operation.file, operation.line
                if key not in seen and any(_used(graph, value) for value in _logarithms(graph, operation)):
                    seen.add(key)
                    yield found


def _renormalised(graph: StepGraph, operation: Operation) -> Renormalised | None:
    if not operation.inputs or not graph.values[operation.inputs[0]].requires_grad:
        return None
    given = graph.values[operation.inputs[0]]
    source, factor = _untempered(graph, given.index)
    made = maker(graph, source)
    if made is None or made.name not in _SOFTMAXES or not 1 / SHARPEST <= factor <= SHARPEST:
        return None
    same = _same_axis(graph.values[made.outputs[0]], made, given, operation)
    return Renormalised(made, operation, given, tempered=source != given.index) if same else None


def _untempered(graph: StepGraph, value: int) -> tuple[int, float]:
    """What was multiplied with a learned number, or divided by it, and by how much; the value itself where it was not."""
    last = maker(graph, value)
    if last is None or last.name not in {"mul", "div", "multiply", "divide"} or len(last.inputs) != 2:
        return value, 1.0
    one, other = (graph.values[i] for i in last.inputs)
    if last.name.startswith("mul") and _learned(one):
        one, other = other, one
    if not _learned(other) or not other.low:
        return value, 1.0
    return one.index, other.low if last.name.startswith("mul") else 1 / other.low


def _learned(value: Value) -> bool:
    return value.requires_grad and math.prod(value.shape) == 1 and math.isfinite(value.low)


def _same_axis(made: Value, softmax: Operation, given: Value, operation: Operation) -> bool:
    """Whether both sum over the same axis: two softmaxes over rows and over columns are another thing."""
    first, second = _axis(made, softmax), _axis(given, operation)
    if first is None or second is None:
        return False
    return first == second if made.shape == given.shape else made.shape[first] == given.shape[second]


def _axis(value: Value, operation: Operation) -> int | None:
    rank = len(value.shape)
    named = dimension(operation)
    if named is None and operation.attributes.get("dim", operation.attributes.get("1")) in {"(-1)", "(-1,)"}:
        named = -1
    if named is None:  # as softmax decides where it is not told
        named = 0 if rank in (0, 1, 3) else 1
    return named % rank if rank and -rank <= named < rank else None


def _logarithms(graph: StepGraph, operation: Operation) -> Iterator[int]:
    """The log-probabilities that come of it: its own result, or the scores less the logsumexp (or their minus)."""
    if operation.name == "log_softmax":
        yield from operation.outputs
        return
    scores = maker(graph, operation.inputs[0])
    readers = deque(operation.outputs)
    while readers:
        for reader in graph.consumers(readers.popleft()):
            if reader.name in RESHAPES:
                readers.extend(reader.outputs)
            elif reader.name in _DIFFERENCES and any(maker(graph, i) is scores for i in reader.inputs):
                yield from reader.outputs


def _used(graph: StepGraph, logarithms: int) -> bool:
    """Whether the loss depends on them as log-probabilities: not as an entropy alone, where they meet their own probabilities."""
    behind, queue = graph.values_behind(by_gradient=True), deque([logarithms])
    while queue:
        value = queue.popleft()
        if value == graph.loss:
            return True
        for reader in graph.consumers(value):
            if behind.isdisjoint(reader.outputs) or reader.name in _PROBABILITIES:
                continue
            if reader.name in _SAME:
                queue.extend(reader.outputs)
            elif not (reader.name == "mul" and any(_probabilities(graph, i) for i in reader.inputs)):
                return True
    return False


def _probabilities(graph: StepGraph, value: int) -> bool:
    made = maker(graph, value)
    return made is not None and made.name in _PROBABILITIES
