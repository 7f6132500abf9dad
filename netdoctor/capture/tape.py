"""What the user's loop did between the model and `backward`, kept so that it can be done again on a copy.

A tape entry is a call of an outermost module with state, or of a torch function outside of any such module. Its tensor arguments
are rewritten to what they mean: the result of an earlier entry (`Slot`), a leaf that wants a gradient (`Leaf`), or a constant.
Entries that neither touch parameters nor depend on anything that does are not kept: their results are constants.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netdoctor.capture.births import Births
from netdoctor.capture.tree import PLAIN, substitute, tensors

_PRUNE_ENTRIES, _PRUNE_BYTES = (
    1_024,
    64 << 20,
)  # beyond what is in use: then calls that no backward can reach are dropped
_RECENT = 64  # of them are kept though they ran without grad: a target of the running step may be among them


@dataclass(frozen=True, slots=True)
class Slot:
    """The n-th tensor that the tape's entries made."""

    number: int


@dataclass(frozen=True, slots=True)
class Carried(Slot):
    """A tensor with a graph that none of this step's entries made: one of the step before, where it was slot `before`, or -1."""

    before: int = -1


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf tensor that requires grad: a parameter, or an input that a gradient is wanted of."""

    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that does not depend on parameters. `version` tells whether it was overwritten since."""

    tensor: Tensor
    version: int

    def nbytes(self) -> int:
        """What it holds, in bytes."""
        return self.tensor.numel() * self.tensor.element_size()

    @property
    def overwritten(self) -> bool:
        """Whether the tensor was changed in place since the tape saw it."""
        return version(self.tensor) != self.version

    def stand_in(self, tensor: Tensor) -> None:
        """From now on it means `tensor`, a copy that was taken before the tensor was overwritten."""
        object.__setattr__(self, "tensor", tensor)
        object.__setattr__(self, "version", version(tensor))


@dataclass(slots=True)
class Context:
    """What surrounds a call and changes its result: random state, gradient mode, autocast."""

    grad: bool
    autocast: tuple[str, torch.dtype] | None
    cpu_random: Tensor | None  # None for a call that draws nothing
    cuda_random: list[Tensor] | None
    numpy_random: Any = None
    python_random: Any = None


@dataclass(slots=True)
class Entry:
    """One call. `modes` are the train/eval flags of the module and all its submodules, in the order of `modules()`."""

    call: Callable[..., Any] | None
    module: nn.Module | None
    args: Any
    kwargs: Any
    outputs: list[int] = field(default_factory=list)
    context: Context | None = None
    modes: tuple[bool, ...] = ()
    mutates: bool = False  # the first argument is changed in place and is the result
    position: tuple[str, int] = ("", 0)
    name: str = ""
    nth: int = 0  # of the calls of this module or function in its step

    def meanings(self) -> list[Any]:
        """Every `Slot`, `Leaf` and `Constant` of its arguments, in order."""
        found: list[Any] = []
        walk((self.args, self.kwargs), found.append)
        return found

    def inputs(self) -> list[int]:
        """The slots that it reads."""
        return [item.number for item in self.meanings() if isinstance(item, Slot)]

    def bytes(self) -> int:
        """What its constants hold, in bytes."""
        return sum(item.nbytes() for item in self.meanings() if isinstance(item, Constant))


_MEANINGS = (Slot, Carried, Leaf, Constant)


def version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; inference tensors do not say, and cannot be changed in training."""
    return 0 if tensor.is_inference() else tensor._version


def walk(thing: Any, visit: Callable[[Any], None], depth: int = 0) -> None:
    """Call `visit` on every `Slot`, `Leaf` and `Constant` in rewritten arguments."""
    kind = type(thing)
    if kind in PLAIN:
        return
    if kind in _MEANINGS:
        visit(thing)
    elif isinstance(thing, (list, tuple)) and depth < 10:
        for item in thing:
            walk(item, visit, depth + 1)
    elif isinstance(thing, dict) and depth < 10:
        for item in thing.values():
            walk(item, visit, depth + 1)
    elif hasattr(thing, "__dataclass_fields__") and not isinstance(thing, type):
        for name in thing.__dataclass_fields__:
            walk(getattr(thing, name, None), visit, depth + 1)
    elif hasattr(thing, "values") and hasattr(thing, "keys") and not isinstance(thing, Tensor):
        for key in list(thing.keys()):
            walk(thing[key], visit, depth + 1)


def is_trained_leaf(args: Any, kwargs: Any) -> bool:
    """Whether the first tensor of a call is a weight, or an input that a gradient is wanted of."""
    first = next(tensors((args, kwargs)), None)
    return first is not None and first.is_leaf and first.requires_grad


def random_states(everything: bool, draws: bool = True) -> Context:
    """The context of a call that is about to be made. `everything` includes the states of numpy and `random` (10 µs); a call that
    `draws` nothing needs none (5 µs)."""
    cuda = None
    if draws and torch.cuda.is_initialized():  # a fact of the process; asking costs nothing and starts no driver
        cuda = torch.cuda.get_rng_state_all()
    autocast = None
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            autocast = (device, torch.get_autocast_dtype(device))
    return Context(
        torch.is_grad_enabled(),
        autocast,
        torch.get_rng_state() if draws else None,
        cuda,
        np.random.get_state() if everything else None,
        random.getstate() if everything else None,
    )


@dataclass(slots=True)
class Backward:
    """One `backward` call: the entries that the loss depends on, in order, and the slots it was called on."""

    entries: list[Entry]
    losses: list[Slot]
    position: tuple[str, int]
    seeds: tuple[Tensor | None, ...] = ()
    fresh: bool = True  # no parameter held a gradient from before
    retain: bool = False
    value: float = float("nan")  # the sum of the losses, as the user's run had it

    def leaves(self) -> list[Tensor]:
        """The weights that it depends on: parameters of modules, and loose leaves; each as often as it is used."""
        found: list[Tensor] = [
            p for entry in self.entries if entry.module is not None for p in entry.module.parameters()
        ]
        items: list[Any] = []
        walk([(entry.args, entry.kwargs) for entry in self.entries], items.append)
        found += [item.tensor for item in items if isinstance(item, Leaf)]
        return found


def _base(tensor: Tensor) -> Tensor:
    """The tensor that this one is a view of, or itself."""
    base: Tensor | None = tensor._base
    return tensor if base is None else base


def _gone() -> None:
    """What is left of a tensor that nobody holds any more."""


def _first(tensor: Tensor, _: Tensor) -> Tensor:
    return tensor


class Tape:
    """Collects the entries of the running step. Results are held weakly: how long a tensor lives stays the user's affair."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._before = self._slots  # those of the step before
        self._sharing: dict[
            int, dict[int, None]
        ] = {}  # keys of slots in order, by the tensor that they may be views of
        self.entries: list[Entry] = []
        self._count = 0
        self._bytes = 0
        self._limits = (_PRUNE_ENTRIES, _PRUNE_BYTES)
        self.births = Births()

    def __len__(self) -> int:
        return len(self.entries)

    def clear(self) -> None:
        """Forget the step."""
        self._before, self._slots = self._slots, {}
        self._sharing.clear()
        self.entries.clear()
        self.births.clear()
        self._bytes = 0
        self._limits = (_PRUNE_ENTRIES, _PRUNE_BYTES)

    def depends(self, args: Any, kwargs: Any) -> bool:
        """Whether any argument depends on parameters."""
        return any(
            self.slot(tensor) is not None or (tensor.requires_grad and tensor.is_leaf)
            for tensor in tensors((args, kwargs))
        )

    def idle(self) -> bool:
        """Whether nothing that the tape saw being made is alive and could still lead to a loss."""
        alive = (ref() for ref, _ in self._slots.values())
        return not any(tensor is not None and tensor.grad_fn is not None for tensor in alive)

    def slot(self, tensor: Tensor) -> int | None:
        """The slot that holds this very tensor, or None."""
        found = self._slots.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def encode(self, thing: Any) -> Any:
        """Rewrite the tensors of some arguments to what they mean."""
        return substitute(thing, self._encode)

    def _encode(self, tensor: Tensor) -> Slot | Leaf | Constant:
        slot = self.slot(tensor)
        if slot is not None:
            return Slot(slot)
        if tensor.requires_grad and tensor.is_leaf:
            return Leaf(tensor)
        if tensor.requires_grad:  # made out of sight, or in an earlier step: its graph leads to the user's own weights
            ref, number = self._before.get(id(tensor), (_gone, -1))
            return Carried(-1, number if ref() is tensor else -1)
        self._bytes += tensor.numel() * tensor.element_size()
        return Constant(tensor, version(tensor))

    def add(self, entry: Entry, result: Any) -> None:
        """Keep an entry, and remember which tensors it made."""
        for tensor in tensors(result):
            self._slots[id(tensor)] = (weakref.ref(tensor), self._count)
            self._sharing.setdefault(id(_base(tensor)), {})[id(tensor)] = None
            entry.outputs.append(self._count)
            self._count += 1
        self.entries.append(entry)
        for changed in tensors(result) if entry.mutates else ():
            self._renew_aliases(changed)
        if len(self.entries) > self._limits[0] or self._bytes > self._limits[1]:
            self._prune()

    def _renew_aliases(self, changed: Tensor) -> None:
        """Whatever shares its memory with a tensor that was changed in place holds another value from now on."""
        number = self._slots[id(changed)][1]
        for key in list(self._sharing.get(id(_base(changed)), ())):
            ref, old = self._slots.get(key, (_gone, 0))
            other = ref()
            if other is not None and other is not changed and _base(other) is _base(changed):
                self.add(Entry(_first, None, (Slot(old), Slot(number)), {}, name="alias"), other)

    def _prune(self) -> None:
        """Drop entries whose results are gone and unused: passes that never reach a backward must not pile up.

        Nor may predictions that the user collects hold the batches that they were made from: an old result that no gradient
        leads back from is a constant from now on.
        """
        alive = {number: tensor for ref, number in self._slots.values() if (tensor := ref()) is not None}
        wanted: set[int] = set()
        kept: list[Entry] = []
        recent = self._bytes // 2  # of what is held
        for age, entry in enumerate(reversed(self.entries)):
            recent -= entry.bytes()
            held = [alive[number] for number in entry.outputs if number in alive]
            still = age < _RECENT and recent > 0
            if any(still or tensor.grad_fn is not None for tensor in held) or wanted.intersection(entry.outputs):
                kept.append(entry)
                wanted.update(entry.inputs())
        self.entries = kept[::-1]
        made = {number for entry in kept for number in entry.outputs}
        self._slots = {key: slot for key, slot in self._slots.items() if slot[1] in made and slot[1] in alive}
        self._sharing = {}
        for key, (ref, _) in self._slots.items():
            if (tensor := ref()) is not None:
                self._sharing.setdefault(id(_base(tensor)), {})[key] = None
        self._bytes = sum(entry.bytes() for entry in self.entries)
        self._limits = (2 * len(self.entries) + _PRUNE_ENTRIES, 2 * self._bytes + _PRUNE_BYTES)

    def backward(self, roots: list[Tensor], position: tuple[str, int]) -> Backward | None:
        """The part of the tape that these losses depend on, or None when the tape did not see them being made."""
        numbers = [self.slot(root) for root in roots]
        slots = [Slot(number) for number in numbers if number is not None]
        if not slots or len(slots) != len(roots):
            return None
        wanted = {slot.number for slot in slots}
        kept: list[Entry] = []
        for entry in reversed(self.entries):
            if wanted.intersection(entry.outputs):
                kept.append(entry)
                wanted.update(entry.inputs())
        return Backward(kept[::-1], slots, position)
