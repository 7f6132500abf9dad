"""One captured training step as plain facts: which operations ran, on what, in which order, and from which line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

Scalar = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the step. `origin` is "operation", "parameter", "buffer", "input" (made outside of the captured operations).

    `producer` is the index of the operation that made it (None otherwise). Ranges are over finite values, NaN where there are
    none. `integral` is True when all values are whole numbers, whatever the dtype.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    origin: str
    producer: int | None = None
    name: str = ""  # the parameter's or buffer's name
    low: float = float("nan")
    high: float = float("nan")
    mean: float = float("nan")
    std: float = float("nan")
    finite: bool = True
    integral: bool = False
    requires_grad: bool = False
    trained: bool = False  # depends on a trainable parameter, by value
    leaf: bool = (
        False  # made anew by an operation, with a gradient of its own: `torch.tensor(losses, requires_grad=True)`
    )


@dataclass(frozen=True, slots=True)
class Operation:
    """One torch function call. `module` is the path of the innermost module that ran it ("" outside of any).

    `inputs` and `outputs` are indices of values. `attributes` holds the scalar arguments by name (dim, reduction, p, ...);
    positional scalars are named "0", "1", ... by position.
    """

    index: int
    name: str
    module: str
    module_type: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    call: int = 0
    file: str = ""
    line: int = 0
    grad_enabled: bool = True
    inside: bool = False  # ran inside a module that has parameters (else: in the user's own loss or loop code)
    text: str = ""  # the user's source line, stripped; empty where it could not be read
    outer: str = ""  # path of the outermost running module with parameters, "" outside of any

    @property
    def identity(self) -> tuple[int, str, str, int]:
        """What tells it from all operations of all graphs of a recording: graphs of one step share theirs, later ones do not."""
        return self.index, self.name, self.file, self.line


@dataclass(frozen=True, slots=True)
class Draw:
    """A random draw from what is trained: the value that it made, and those that are its own log-probability (or its negative,
    up to a constant) and have a gradient."""

    value: int
    log_probs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Index:
    """Who reads each value, what is behind the loss, and what has which name, of so many operations of a list."""

    operations: list[Operation]
    count: int
    loss: int | None
    readers: dict[int, list[Operation]]
    behind: tuple[Operation, ...]
    named: dict[str, list[Operation]]
    reached: dict[bool, frozenset[int]]  # see values_behind


@dataclass
class StepGraph:
    """The operations from the first model call to one `backward`, in order, and the tensors between them."""

    operations: list[Operation] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    loss: int | None = None  # index of the value that backward was called on
    step: int = 0  # of the training, in which it was captured
    draws: tuple[Draw, ...] = ()
    taken: tuple[
        int, ...
    ] = ()  # values that something read, or may have read, that is no operation here: Python, a compiler
    rewritten: tuple[
        int, ...
    ] = ()  # values that changed after they were made, by way of another tensor on the same memory

    def __post_init__(self) -> None:
        self._index = _Index([], 0, None, {}, (), {}, {})

    def holds(self, file: str | None, line: int | None) -> bool:
        """Whether one of the operations stands on this line of the user's."""
        return any((operation.file, operation.line) == (file, line) for operation in self.operations)

    def producer(self, value: int) -> Operation | None:
        """The operation that made a value, or None for parameters, buffers and inputs."""
        index = self.values[value].producer
        return None if index is None else self.operations[index]

    def consumers(self, value: int) -> list[Operation]:
        """The operations that read a value."""
        return self._indexed().readers.get(value, [])

    def _indexed(self) -> _Index:
        """What all checks ask for, found once; anew where operations came or the loss became another one."""
        old = self._index
        if old.operations is self.operations and old.count == len(self.operations) and old.loss == self.loss:
            return old
        readers: dict[int, list[Operation]] = {}
        named: dict[str, list[Operation]] = {}
        for operation in self.operations:
            named.setdefault(operation.name, []).append(operation)
            for value in dict.fromkeys(operation.inputs):
                readers.setdefault(value, []).append(operation)
        behind = () if self.loss is None else tuple(self.ancestors(self.loss))
        self._index = _Index(self.operations, len(self.operations), self.loss, readers, behind, named, {})
        return self._index

    def ancestors(self, value: int) -> Iterator[Operation]:
        """The operations that a value depends on, nearest first, each once."""
        seen: set[int] = set()
        queue = deque([value])
        while queue:
            operation = self.producer(queue.popleft())
            if operation is None or operation.index in seen:
                continue
            seen.add(operation.index)
            yield operation
            queue.extend(operation.inputs)

    def loss_operations(self) -> list[Operation]:
        """The operations behind the loss, nearest first; empty when the loss is not in the graph."""
        return list(self._indexed().behind)

    def named(self, names: Iterable[str]) -> list[Operation]:
        """The operations of these names, in order of execution."""
        known = self._indexed().named
        found = [known[name] for name in names if name in known]
        return list(found[0]) if len(found) == 1 else sorted(chain.from_iterable(found), key=lambda o: o.index)

    def values_behind(self, by_gradient: bool) -> frozenset[int]:
        """The values that the loss depends on; with `by_gradient` only along values that require a gradient."""
        reached = self._indexed().reached
        if by_gradient not in reached:
            seen: set[int] = set()
            queue = [] if self.loss is None else [self.loss]
            while queue:
                value = queue.pop()
                if value in seen or (by_gradient and not self.values[value].requires_grad):
                    continue
                seen.add(value)
                producer = None if by_gradient and self.values[value].leaf else self.producer(value)
                queue.extend(() if producer is None else producer.inputs)
            reached[by_gradient] = frozenset(seen)
        return reached[by_gradient]

    def named_behind(self, names: Iterable[str]) -> list[Operation]:
        """Those of them whose results the loss depends on."""
        behind = self.values_behind(by_gradient=False)
        return [operation for operation in self.named(names) if not behind.isdisjoint(operation.outputs)]

    def follow(
        self, operation: Operation, wanted: Callable[[Operation], bool], through: frozenset[str]
    ) -> Operation | None:
        """The first operation downstream for which `wanted` holds, stepping only through operations named in `through`."""
        queue = deque(operation.outputs)
        seen: set[int] = set()
        while queue:
            for consumer in self.consumers(queue.popleft()):
                if consumer.index in seen:
                    continue
                seen.add(consumer.index)
                if wanted(consumer):
                    return consumer
                if consumer.name in through:
                    queue.extend(consumer.outputs)
        return None
