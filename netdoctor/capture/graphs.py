"""Builds the `StepGraph`: facts of every operation of the first training step, inside modules and around them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture import functions
from netdoctor.capture.draws import Draws
from netdoctor.capture.statistics import floats, local
from netdoctor.capture.tape import version
from netdoctor.capture.tree import tensors
from netdoctor.graph import Operation, Scalar, StepGraph, Value

MAX_OPERATIONS = 20_000  # a step longer than this is cut off, so that memory stays bounded
LONG = 4_096  # operations without a loss, from which it is asked whether they are worth a watch, after each
ASKED = 512  # of them: a rollout has that many before its first update, and so has a loop that nobody can follow
_MAX_MEASURED = 4_000_000  # elements; the range of a larger tensor is read from a strided part
Call = tuple[str, Any, Any]  # name, arguments
_OPERAND_NAMES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


class GraphBuilder:
    """Collects operations of one iteration. Tensors are known by identity and held weakly. `overflow` is told now and then while
    there are too many without a loss."""

    def __init__(self, overflow: Callable[[], None] = lambda: None) -> None:
        self._overflow = overflow
        self._operations: list[Operation] = []
        self._values: list[Value] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._versions: dict[int, int] = {}  # of values, as they were made
        self._draws = Draws()
        self._taken: set[int] = set()
        self._rewritten: set[int] = set()
        self._watched = 0  # operations since the last loss

    def make_room(self) -> None:
        """Nothing seen so far belongs to the step that begins: let go of it where it would leave the step too little room."""
        if 2 * len(self._operations) >= MAX_OPERATIONS:
            self._operations.clear()
            self._values.clear()
            self._known.clear()
            self._versions.clear()
            self._draws.clear()
            self._taken.clear()
            self._rewritten.clear()

    def value_of(self, tensor: Tensor) -> int | None:
        """The index of the value that this tensor holds now, or None."""
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def reading(self, arguments: Iterable[Tensor], parameter_name: Any) -> tuple[int, ...]:
        """Indices of the values of some arguments; unseen tensors become inputs, parameters or buffers."""
        if len(self._operations) >= MAX_OPERATIONS:
            return ()
        return tuple(self._enter(tensor, parameter_name) for tensor in arguments)

    def _enter(self, tensor: Tensor, parameter_name: Any) -> int:
        known = self.value_of(tensor)
        if known is not None:
            if _version(tensor) != self._versions[known]:
                self._rewritten.add(known)
            return known
        name = parameter_name(tensor)
        origin = "parameter" if name or isinstance(tensor, torch.nn.Parameter) else "input"
        leaf = tensor.requires_grad and tensor.is_leaf
        return self._put(tensor, origin, None, name, trained=leaf)

    def _put(self, tensor: Tensor, origin: str, producer: int | None, name: str = "", trained: bool = False) -> int:
        index = len(self._values)
        self._values.append(_facts(tensor, index, origin, producer, name, trained))
        self._known[id(tensor)] = (weakref.ref(tensor), index)
        self._versions[index] = _version(tensor)
        return index

    def add(self, operation: Operation, result: Any, call: Call | None = None) -> None:
        """Append an operation and the values that it made. `operation.index` and `.outputs` are filled in here; `call` is its name
        as the user's code spoke it, with its arguments."""
        self._watched += 1
        if self._watched >= LONG and not self._watched % ASKED:
            self._overflow()
        if len(self._operations) >= MAX_OPERATIONS:
            return
        index = len(self._operations)
        trained = any(self._values[value].trained for value in operation.inputs)
        outputs = []
        for tensor in tensors(result):
            leaf, before = tensor.requires_grad and tensor.is_leaf, self.value_of(tensor)
            outputs.append(self._put(tensor, "operation", index, trained=trained or leaf))
            if leaf and operation.inputs and before not in operation.inputs:  # in place it is no other than before
                self._values[-1] = replace(self._values[-1], leaf=True)
        self._operations.append(replace(operation, index=index, outputs=tuple(outputs)))
        if call is not None:
            self._follow_draws(call, result, trained)

    def _follow_draws(self, call: Call, result: Any, trained: bool) -> None:
        """A write into a part of a tensor, or into one that was there before, changes what no operation here shows."""
        name, args, kwargs = call
        mutates = functions.mutates(name, kwargs)
        if mutates or "out" in kwargs:
            if not mutates or (args and isinstance(args[0], Tensor) and args[0]._is_view()):
                self.take((args, kwargs))
        elif trained:
            self._draws.see(name, args, kwargs, result, self.value_of)

    def take(self, thing: Any) -> None:
        """Something that is no operation reads these tensors."""
        self._taken.update(known for tensor in tensors(thing) if (known := self.value_of(tensor)) is not None)

    def lose_sight(self) -> None:
        """Something runs that shows none of its operations: it may read every draw so far."""
        self._taken.update(self._draws.drawn())

    def finish(self, loss: Tensor | None, parameter_name: Callable[[Tensor], str], step: int = 0) -> StepGraph:
        """The graph so far, with the loss marked. Parameters that were met before their model was get their names now."""
        number, self._watched = None if loss is None else self.value_of(loss), 0
        for ref, index in self._known.values():
            tensor, value = ref(), self._values[index]
            if tensor is not None and not value.name and tensor.is_leaf and tensor.requires_grad:
                self._values[index] = replace(value, name=parameter_name(tensor))
        operations, values = list(self._operations), list(self._values)
        taken, rewritten = tuple(sorted(self._taken)), tuple(sorted(self._rewritten))
        return StepGraph(operations, values, number, step, self._draws.seen(), taken, rewritten)


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; of a weight that is no matter, and one without a shape does not say."""
    return 0 if tensor.is_leaf and tensor.requires_grad else version(tensor)


def scalar_attributes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Scalar]:
    """The scalar arguments of a call by name; positional ones by position; short tuples of numbers as text."""
    found: dict[str, Scalar] = {}
    for name, value in [*zip(_OPERAND_NAMES, args, strict=False), *kwargs.items()]:
        if isinstance(value, bool | int | float | str):
            found[name] = value
        elif (
            isinstance(value, tuple | list | torch.Size) and len(value) <= 8 and all(isinstance(v, int) for v in value)
        ):
            found[name] = str(tuple(value))
        elif isinstance(value, torch.dtype):
            found[name] = str(value)
    return found


def _facts(tensor: Tensor, index: int, origin: str, producer: int | None, name: str, trained: bool) -> Value:
    unknown = tensor.is_nested or torch.nn.parameter.is_lazy(tensor)  # torch refuses to say the shape of these
    value = Value(
        index,
        () if unknown else tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        origin,
        producer,
        name,
        requires_grad=tensor.requires_grad,
        trained=trained,
    )
    measured = None if unknown else _range(tensor)
    return value if measured is None else replace(value, **measured)


def _range(tensor: Tensor) -> dict[str, Any] | None:
    tensor = local(tensor)
    if tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized and tensor.numel():
        values = floats(tensor)
        if values is None and not tensor.is_complex():
            values = tensor.detach().double()
        if values is not None:
            return _measure(values.reshape(-1))
    return None


def _measure(flat: Tensor) -> dict[str, Any]:
    flat = flat[:: max(1, flat.numel() // _MAX_MEASURED)]
    values = flat.to("cpu", torch.float64, copy=True).numpy()  # one transfer, and many calls that cost half of torch's
    low, high = values.min(), values.max()
    finite = bool(np.isfinite(low) and np.isfinite(high))
    if not finite:
        values = values[np.isfinite(values)]
        if not values.size:
            return {"finite": False}
        low, high = values.min(), values.max()
    with np.errstate(over="ignore"):
        mean, spread = float(values.mean()), float(values.std())
    integral = bool((values == np.rint(values)).all())
    return {
        "low": float(low),
        "high": float(high),
        "mean": mean,
        "std": spread,
        "finite": finite,
        "integral": integral,
    }
