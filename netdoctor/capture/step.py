"""The captured training step in its live form: replayable on a copy of everything that it trains."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.frozen_norms import Frozen
from netdoctor.capture.planned import Planned
from netdoctor.capture.room import refuse_without_room
from netdoctor.capture.stored import Changed
from netdoctor.capture.tape import Backward, Constant, Context, Entry, Leaf, Slot, walk
from netdoctor.capture.tree import PLAIN, tensors
from netdoctor.errors import CannotReplayError

SAME = 1e-4  # relative; on a CPU the loss comes back to the last bit, on a GPU sums may be taken in another order


@dataclass(slots=True)
class Action:
    """One thing that the loop did: "zero" (gradients), "backward", "clip", or "step" (of optimizer `optimizer`, at `lrs`).

    A treatment may add "scale": the gradients of `parameters` times `limit`.
    """

    kind: str
    backward: Backward | None = None
    optimizer: int = 0
    lrs: tuple[float, ...] = ()
    options: tuple[dict[str, Any], ...] = ()  # what else a schedule may move, by group: momentum, betas, weight_decay
    parameters: tuple[Tensor, ...] = ()
    limit: float = 0.0
    by_value: bool = False
    norm_type: float = 2.0


@dataclass(slots=True)
class Iteration:
    """One training step as the user's loop did it: its actions in order, and the sum of its losses as they were then."""

    actions: list[Action] = field(default_factory=list)
    bytes: int = 0

    @property
    def backwards(self) -> list[Backward]:
        """The backward calls, in order."""
        return [action.backward for action in self.actions if action.backward is not None]


class Copies:
    """Copies of modules and loose leaf tensors that keep what they share; `of` finds the copy of an original."""

    def __init__(self, modules: Iterable[nn.Module], leaves: Iterable[Tensor]) -> None:
        self.kept: dict[int, Tensor] = {}  # what inputs that want a gradient held when they were used
        self._memo: dict[int, Any] = {}
        self._originals: list[Any] = []  # keeps ids valid
        for module in modules:
            self._copy_module(module)
        for leaf in leaves:
            if id(leaf) not in self._memo:
                self._memo[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
                self._originals.append(leaf)

    def _copy_module(self, module: nn.Module) -> None:
        if id(module) in self._memo:
            return
        self._originals.append(module)
        for child in module.modules():
            for value in list(vars(child).values()):
                for tensor in tensors(value):
                    if (
                        tensor.grad_fn is not None and id(tensor) not in self._memo
                    ):  # deepcopy refuses what has a history
                        self._memo[id(tensor)] = tensor.detach().clone()
                        self._originals.append(tensor)
        before = dict(self._memo)
        try:
            copy.deepcopy(module, self._memo)
        except Exception as error:
            self._memo = before  # without the copies that were left half-made
            self._share_what_cannot_be_copied(module)
            try:
                copy.deepcopy(module, self._memo)
            except Exception:
                raise CannotReplayError(f"{type(module).__name__} cannot be copied ({error})") from error

    def _share_what_cannot_be_copied(self, module: nn.Module) -> None:
        """Loggers, locks and open files that a model carries about are shared with the copy, which does not need its own."""
        for child in module.modules():
            for name, value in list(vars(child).items()):
                if name.startswith("_") and isinstance(value, dict):
                    continue
                try:
                    copy.deepcopy(value, dict(self._memo))
                except Exception:
                    self._memo[id(value)] = value
                    self._originals.append(value)

    def of(self, original: Any) -> Any:
        """The copy of a module or leaf; None when it was not copied."""
        return self._memo.get(id(original))


def refuse_overwritten(backward: Backward) -> None:
    """Raise CannotReplayError when the user's loop overwrote a tensor that the step was captured with."""
    stale: list[Constant] = []
    for entry in backward.entries:
        walk(
            (entry.args, entry.kwargs),
            lambda item: stale.append(item) if isinstance(item, Constant) and item.overwritten else None,
        )
    if stale:
        shape = tuple(stale[0].tensor.shape)
        raise CannotReplayError(f"a tensor of shape {shape} that the step used was overwritten later")


class Replay:
    """Runs captured backward calls of one iteration on copies. Entries that several losses share are run once.

    The caller guards the global random state: every call sets it to what it was before the original call.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._values: dict[int, Tensor] = {}
        self._done: set[int] = set()
        self._inputs: dict[int, Tensor] = {}
        self.entry: Entry | None = None  # the one that is running, for whoever watches

    def loss(self, backward: Backward, edit: Callable[[Entry, Any, Any], tuple[Any, Any]] | None = None) -> Tensor:
        """The sum of the losses of one backward call, with its graph. `edit` may change the arguments of a call."""
        for entry in backward.entries:
            if id(entry) not in self._done:
                self._done.add(id(entry))
                self.run_entry(entry, edit)
        total: Tensor | None = None
        for slot, seed in zip(backward.losses, backward.seeds or (None,) * len(backward.losses), strict=False):
            value = self._values[slot.number]
            part = value.sum() if seed is None else (value * seed).sum()
            total = part if total is None else total + part
        if total is None:
            raise CannotReplayError("the loss was not seen being made")
        return total

    def run_entry(self, entry: Entry, edit: Callable[[Entry, Any, Any], tuple[Any, Any]] | None = None) -> None:
        """Run one captured call and keep its results."""
        self.entry = entry
        call = self._module(entry) if entry.call is None else entry.call
        args, kwargs = self._decode((entry.args, entry.kwargs), entry.mutates)
        if edit is not None:
            args, kwargs = edit(entry, args, kwargs)
        with surroundings(entry.context):
            result = self._called(call, args, kwargs)
        made = args[0] if entry.mutates and args else result
        for number, tensor in zip(entry.outputs, tensors(made), strict=False):
            self._values[number] = tensor

    def value(self, number: int) -> Tensor:
        """What an entry made: the tensor of this slot."""
        return self._values[number]

    def _called(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except ValueError as error:  # what torch raises where the other processes of the training are gone by now
            if "process group" not in str(error):
                raise
            raise CannotReplayError("the step talks to the other processes, which are gone") from error

    def _module(self, entry: Entry) -> nn.Module:
        module = self._copies.of(entry.module)
        if not isinstance(module, nn.Module):
            raise CannotReplayError(f"no copy of {type(entry.module).__name__}")
        for child, mode in zip(module.modules(), entry.modes, strict=False):
            child.training = mode
        return module

    def _decode(self, thing: Any, clone: bool) -> Any:
        if type(thing) in PLAIN:
            return thing
        if isinstance(thing, Slot):
            if thing.number not in self._values:
                raise CannotReplayError("it depends on a tensor that was made out of sight or in an earlier step")
            return self._values[thing.number]
        if isinstance(thing, Leaf):
            return self._leaf(thing.tensor)
        if isinstance(thing, Constant):
            return thing.tensor.clone() if clone else thing.tensor
        if isinstance(thing, list | tuple):
            items = [self._decode(item, clone) for item in thing]
            return type(thing)(*items) if hasattr(thing, "_fields") else type(thing)(items)
        if type(thing) is dict:
            return {key: self._decode(value, clone) for key, value in thing.items()}
        return self._decode_object(thing, clone)

    def _decode_object(self, thing: Any, clone: bool) -> Any:
        found: list[Any] = []
        walk(thing, found.append)
        if not found:
            return thing
        copied = copy.copy(thing)
        if hasattr(thing, "keys"):
            for key in list(thing.keys()):
                copied[key] = self._decode(thing[key], clone)
        else:
            for name in thing.__dataclass_fields__:
                object.__setattr__(copied, name, self._decode(getattr(thing, name, None), clone))
        return copied

    def _leaf(self, leaf: Tensor) -> Tensor:
        found = self._copies.of(leaf)
        if isinstance(found, Tensor):
            return found
        if id(leaf) not in self._inputs:
            with torch._C.DisableTorchFunction():  # a copy of ours is no operation of the user's
                self._inputs[id(leaf)] = self._copies.kept.get(id(leaf), leaf).detach().clone().requires_grad_()
        return self._inputs[id(leaf)]


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put every random state back, whatever happened in between."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def surroundings(context: Context | None) -> Iterator[None]:
    """Make the world look as it did when the call was captured: random states, gradient mode, autocast."""
    if context is None:
        yield
        return
    if context.cpu_random is not None:
        torch.set_rng_state(context.cpu_random)
    if context.cuda_random is not None:
        torch.cuda.set_rng_state_all(context.cuda_random)
    if context.numpy_random is not None:
        np.random.set_state(context.numpy_random)
    if context.python_random is not None:
        random.setstate(context.python_random)
    autocast = contextlib.nullcontext() if context.autocast is None else torch.autocast(*context.autocast)
    with torch.set_grad_enabled(context.grad), autocast:
        yield


@dataclass(slots=True)
class OptimizerStart:
    """An optimizer and what it was like before its first step: group options without parameters, and state by parameter."""

    optimizer: Optimizer
    groups: list[dict[str, Any]]
    parameters: list[list[Tensor]]
    state: dict[int, Any]


@dataclass(slots=True)
class TrainingStep:
    """The first iterations of a training, with the weights from before the first one: what every experiment runs on.

    `starts` maps id(tensor) → value before the first step, for parameters, buffers and loose leaves.
    """

    iterations: list[Iteration]
    modules: list[nn.Module]
    leaves: list[Tensor]
    optimizers: list[OptimizerStart]
    starts: dict[int, tuple[Tensor, Tensor]]
    lost: str = ""  # why nothing could be captured, "" when something was
    verified: bool = False  # the first loss came back on a copy
    rule: tuple[float, float] | None = (
        None  # learning rate and momentum of a loop without an optimizer, once they were found out
    )
    pace: float | None = None  # seconds that a step takes, once an experiment measured it
    seconds: dict[int, Tensor] = field(
        default_factory=dict
    )  # values at the second step, where no torch optimizer steps
    begins: int = 0  # the step of the first iteration
    held: dict[tuple[str, int], list[Backward]] = field(
        default_factory=dict
    )  # by (file, line): the script's own evaluations
    norms: list[tuple[nn.Module, Frozen]] = field(default_factory=list)  # frozen on the way, whose statistics moved on
    changed: list[Changed] = field(default_factory=list)  # datasets whose stored arrays were written to
    late: TrainingStep | None = None  # the same of a later part, where the loop became another
    unfinished: Iteration | None = None  # the one after the last, which is given what that made, with its graph
    planned: list[Planned] = field(default_factory=list)  # the learning-rate schedules, as they were built

    def parts(self) -> Iterator[TrainingStep]:
        """This one and the later ones, in no order."""
        part: TrainingStep | None = self
        while part is not None:
            yield part
            part = part.late

    def copies(self) -> Copies:
        """Fresh copies of all that trains, in the state from before the first step.

        Raises CannotReplayError, also when the captured step gives another loss on a copy than the user's run had: then the
        model keeps something that capture does not know of, and no experiment would speak of the same training.
        """
        if self.lost or not self.iterations:
            raise CannotReplayError(self.lost or "no training step was captured")
        if not self.verified:
            self._verify(self._fresh_copies())
            self.verified = True
        return self._fresh_copies()

    def _verify(self, copies: Copies) -> None:
        backward = self.iterations[0].backwards[0]
        refuse_overwritten(backward)
        try:
            with preserved_random_state():
                again = float(Replay(copies).loss(backward).detach())
        except CannotReplayError:
            raise
        except Exception as error:  # of the user's model: what it needs is no longer there, such as the other processes
            raise CannotReplayError(f"the first step fails when it is run again: {str(error)[:200]}") from error
        scale = max(abs(backward.value), 1e-12)
        same = again == backward.value or (math.isnan(again) and math.isnan(backward.value))
        if not same and not abs(again - backward.value) <= SAME * scale:
            was = f"{again:.6g} instead of {backward.value:.6g}"
            why = "the model was changed since, or keeps something of its own"
            raise CannotReplayError(f"the first step gives another loss when it is run again on a copy, {was}: {why}")

    def _fresh_copies(self) -> Copies:
        refuse_without_room(self.modules, self.leaves)
        copies = Copies(self.modules, self.leaves)
        copies.kept = {key: start for key, (_, start) in self.starts.items()}
        with torch.no_grad():
            for original, start in self.starts.values():
                copied = copies.of(original)
                if isinstance(copied, Tensor):
                    if (copied.shape, copied.dtype, copied.device) == (start.shape, start.dtype, start.device):
                        copied.detach().copy_(start)
                    else:  # converted or moved after training
                        copied.data = start.detach().clone()
                    if copied.is_leaf:
                        copied.requires_grad_(start.requires_grad)  # frozen or freed since
        for module in self.modules:
            copied_module = copies.of(module)
            for parameter in copied_module.parameters():
                parameter.grad = None
        return copies
