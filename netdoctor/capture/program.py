"""The captured iterations: what the loop did in the first steps and, where it changes later, in the steps from there on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture import carried, statistics
from netdoctor.capture.changes import Changes
from netdoctor.capture.fault import faulty_step
from netdoctor.capture.naming import ModuleNames, Root
from netdoctor.capture.planned import Planned
from netdoctor.capture.spares import Spares
from netdoctor.capture.step import Action, Iteration, TrainingStep
from netdoctor.capture.tape import Backward
from netdoctor.capture.window import Window

MAX_ITERATIONS = 24
MAX_BYTES = 256 << 20  # of captured batches
LATE_ITERATIONS, LATE_BYTES = 12, 64 << 20  # of the late window: one of several passes over them is still a trend
LATE_WINDOWS = 2  # that are kept: the first one and the last one
LATE_START = 256 << 20  # bytes of weights and optimizer state: of what is larger no second copy is kept


class Program:
    """Captures iterations until there are enough, and snapshots what trains before it is trained.

    The first window takes the first steps. A late one begins, with a copy of all weights and optimizer states of that moment, at
    the very step in which the loop becomes another or goes bad (see `Changes`). The first and the last of these are kept.
    """

    def __init__(self, names: ModuleNames) -> None:
        self._names = names
        self.current = Iteration()
        self._next: list[Action] = []  # what belongs to the iteration after the running one
        self._spares = Spares()
        self.functional = False  # parameters are used outside of modules before any module runs
        self.keep_start = True  # costs one copy of the model's weights
        self.lost = ""
        self.changes = Changes()
        self.planned: list[Planned] = []  # the learning-rate schedules, as they were built
        self._first = Window(MAX_ITERATIONS, MAX_BYTES)
        self._late: list[Window] = []
        self._fault: TrainingStep | None = None

    @property
    def iterations(self) -> list[Iteration]:
        """Those of the first window."""
        return self._first.iterations

    @property
    def _open(self) -> Window | None:
        if not self.keep_start:
            return None
        if self._first.open:
            return self._first
        return self._late[-1] if self._late and self._late[-1].open else None

    @property
    def capturing(self) -> bool:
        """Whether more iterations are wanted."""
        return self._open is not None

    @property
    def renewed(self) -> bool:
        """Whether a late window has begun."""
        return bool(self._late)

    @property
    def begun(self) -> bool:
        """Whether a backward call was captured: from then on what was kept as the start stands."""
        return bool(self._first.iterations or self.current.backwards)

    def see_module(self, module: nn.Module, root: Root, idle: bool = False) -> None:
        """An outermost module is about to run: keep the weights of the whole model as they are before its first step.

        `idle`: no result of an earlier call is alive, so a call before this one was no part of the first step.
        """
        window = self._open
        if window is None:
            return  # what runs only later is in no captured step: it is not held, for it may be a copy made in every step
        top = root.module()
        window.see_module(module, module if top is None else top, idle and not self.begun)

    def see_optimizer(self, optimizer: Optimizer, index: int) -> None:
        """An optimizer is about to take its first step: keep its options and whatever state it was loaded with."""
        if self.keep_start:
            self._first.see_optimizer(optimizer, index)
            if self._late:
                self._late[-1].see_optimizer(optimizer, index)

    def backward(self, backward: Backward) -> None:
        """A backward call of the running iteration."""
        if not self.begun:  # weights may have been set after the first pass, which only asked for shapes
            for parameter in [p for module in self._first.modules.values() for p in module.parameters()]:
                self._first.snapshot(parameter, again=True)
        self.current.actions.append(Action("backward", backward))
        if self._open is not None:
            self._open.see_leaves(backward)
            self._spares.take(backward)

    def hold_back(self) -> None:
        """The running iteration is over, but for what came after its last step: that is of the step which is about to be taken."""
        actions = self.current.actions
        end = max((n + 1 for n, action in enumerate(actions) if action.kind == "step"), default=len(actions))
        self._next, self.current.actions = actions[end:], actions[:end]

    def end_iteration(self, step: int) -> None:
        """The running iteration is over: keep it if more are wanted."""
        done, self.current, self._next = self.current, Iteration(self._next), []
        self._spares.end_iteration()
        window = self._open
        if window is not None and done.backwards:
            window.add(done)

    # --- the late window ---------------------------------------------------------------------------------------------

    @property
    def may_renew(self) -> bool:
        """Whether a late window may begin: the first one is full, and no other one is open."""
        return self.keep_start and not self.capturing and self.begun

    def renew(self, step: int, backwards: Sequence[Backward]) -> bool:
        """Begin a late window with the running iteration, whose backward calls so far these are; weights are as before its step.

        False where that is not possible: what trains is too large for another copy, or is not finite any more.
        """
        known = [tensor for tensor, _ in self._first.starts.values() if tensor.requires_grad]
        sound = all(bool(torch.isfinite(statistics.local(tensor.detach())).all()) for tensor in known)
        if self._size() > LATE_START or not backwards or not sound:
            return False
        window = Window(LATE_ITERATIONS, LATE_BYTES, step)
        self._late = [*self._late[: LATE_WINDOWS - 1], window]
        for module in self._first.modules.values():
            window.see_module(module, module)
        if not self.current.backwards:  # the step was followed by its calls alone
            self.current.actions[:0] = [Action("backward", backward) for backward in backwards]
        for backward in backwards:
            for entry in backward.entries:
                if entry.module is not None:
                    top = self._names.root_of(entry.module).module()
                    window.see_module(entry.module, entry.module if top is None else top)
                    entry.modes = entry.modes or tuple(child.training for child in entry.module.modules())
            window.see_leaves(backward)
        for index, start in self._first.optimizers.items():
            window.see_optimizer(start.optimizer, index)
        return True

    def _size(self) -> int:
        """Bytes of all weights, buffers and optimizer states that are known."""
        held: list[Tensor] = [tensor for tensor, _ in self._first.starts.values()]
        for start in self._first.optimizers.values():
            states = (entry for entry in start.optimizer.state.values() if isinstance(entry, dict))
            held += [value for entry in states for value in entry.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    # --- what it holds -----------------------------------------------------------------------------------------------

    def training_step(self) -> TrainingStep:
        """Everything that experiments need; its `late` is that of the last late window, whose `late` is the first one's."""
        lost = self.lost
        self._spares.settle()
        if not self._first.iterations and not lost:
            lost = "no complete training step was captured"
        late: TrainingStep | None = None
        for window in self._late:
            late = replace(window.training_step(lost), late=late) if window.iterations else late
        if self._fault is not None:
            late = replace(self._fault, late=late)
        running = carried.unfinished(self.current) if self._first.open and self._first.iterations else None
        return replace(self._first.training_step(lost), late=late, planned=list(self.planned), unfinished=running)

    def keep_fault(self, step: int, backwards: list[Backward]) -> None:
        """The running step made a NaN or Inf, and the weights are still untouched: keep it and them."""
        if self.keep_start and self._fault is None and self._size() <= LATE_START:
            begun = self._first.training_step(self.lost)
            self._fault = faulty_step(begun, backwards, step)

    def release(self) -> None:
        """Let go of models, weights and batches; what `training_step` gave out keeps its own."""
        self.keep_start = False
        self.current = Iteration()
        self._spares.release()
        self._first.clear()
        self._late, self._fault, self.planned = [], None, []

    def changed(self) -> bool:
        """Whether any weight differs from what it was before the first step."""
        return any(tensor.requires_grad and not torch.equal(tensor.detach(), start) for tensor, start in self.starts())

    def starts(self) -> list[tuple[Tensor, Tensor]]:
        """(tensor, its value from before its first step) of everything that was kept."""
        return list(self._first.starts.values())

    def loose(self) -> list[Tensor]:
        """Leaves that no module holds and no optimizer is known to own, and that train all the same: several iterations use
        them, or there is nothing else that could."""
        alone = not self._first.modules and not self._first.optimizers
        used = self._first.used_leaves()
        return [leaf for key, leaf in self._first.leaves.items() if alone or key in used]

    def parameters(self) -> Iterator[tuple[Tensor, str]]:
        """Everything that trains, as it is now, with its key."""
        held: list[Tensor] = [p for module in self._first.modules.values() for p in module.parameters()]
        held += [p for start in self._first.optimizers.values() for group in start.parameters for p in group]
        for parameter in {id(p): p for p in held}.values():
            yield parameter, self._names.parameter_key(parameter)
