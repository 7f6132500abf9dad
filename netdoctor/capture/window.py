"""Some consecutive iterations of a training, and all that trains as it was before the first of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.statistics import is_shard
from netdoctor.capture.step import Action, Iteration, OptimizerStart, TrainingStep
from netdoctor.capture.tape import Backward, Leaf, walk

MAX_MODULES = 256  # outermost ones: more are copies that a loop makes and throws away


class Window:
    """Takes iterations until there are `most`, or their batches hold `room` bytes; `begins` is the step of the first one."""

    def __init__(self, most: int, room: int, begins: int = 0) -> None:
        self.begins = begins
        self.iterations: list[Iteration] = []
        self.modules: dict[int, nn.Module] = {}
        self.leaves: dict[int, Tensor] = {}
        self.optimizers: dict[int, OptimizerStart] = {}
        self.starts: dict[int, tuple[Tensor, Tensor]] = {}
        self.seconds: dict[int, Tensor] = {}
        self._most, self._room, self._bytes = most, room, 0

    @property
    def open(self) -> bool:
        """Whether more iterations are wanted."""
        return len(self.iterations) < self._most and self._bytes < self._room

    def see_module(self, module: nn.Module, top: nn.Module, again: bool = False) -> None:
        """Keep the weights of a module and of the model that it is a part of; `again`: anew, if they changed."""
        if len(self.modules) >= MAX_MODULES or (id(module) in self.modules and not again):
            return
        self.modules[id(module)] = module
        self.modules.setdefault(id(top), top)
        held = [*top.parameters(), *top.buffers()]
        for tensor in held if module is top else [*held, *module.parameters(), *module.buffers()]:
            self.snapshot(tensor, again)

    def snapshot(self, tensor: Tensor, again: bool = False) -> None:
        """Keep a tensor's value, once; `again`: anew, if it changed."""
        if nn.parameter.is_lazy(tensor) or tensor.is_meta or is_shard(tensor):
            return
        known = self.starts.get(id(tensor))
        if known is None or (again and not _same(known[1], tensor)):
            with torch.no_grad():
                self.starts[id(tensor)] = (tensor, tensor.detach().clone().requires_grad_(tensor.requires_grad))

    def see_optimizer(self, optimizer: Optimizer, index: int) -> None:
        """Keep an optimizer's options and state as they are now, once."""
        if index in self.optimizers:
            return
        parameters = [list(group["params"]) for group in optimizer.param_groups]
        groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        state: dict[int, Any] = {}
        for tensor, entry in optimizer.state.items():
            state[id(tensor)] = copy.deepcopy(entry)
        self.optimizers[index] = OptimizerStart(optimizer, groups, parameters, state)

    def see_leaves(self, backward: Backward) -> None:
        """Keep the loose leaves that a loss depends on, as they are before the step."""

        def keep(item: Any) -> None:
            if isinstance(item, Leaf) and id(item.tensor) not in self.starts:
                self.leaves[id(item.tensor)] = item.tensor
                self.snapshot(item.tensor)

        for entry in backward.entries:
            walk((entry.args, entry.kwargs), keep)
        if len(self.iterations) == 1 and not self.optimizers and not self.seconds:
            # No optimizer steps so far: how the loop itself moved the weights tells its update rule.
            self.seconds = {key: tensor.detach().clone() for key, (tensor, _) in self.starts.items()}

    def add(self, done: Iteration) -> None:
        """An iteration is over."""
        seen = {id(entry): entry for backward in done.backwards for entry in backward.entries}
        done.bytes = sum(entry.bytes() for entry in seen.values())
        self._bytes += done.bytes
        self.iterations.append(done)

    def training_step(self, lost: str) -> TrainingStep:
        """Everything that experiments need."""
        modules, used = list(self.modules.values()), self.used_leaves()
        owned = {id(p) for module in modules for p in module.parameters()}
        leaves = [leaf for key, leaf in self.leaves.items() if key not in owned and key in used]
        numbers = sorted(self.optimizers)
        if self.begins:  # one that the loop left behind may hold weights that are in no model any more
            stepped = {a.optimizer for iteration in self.iterations for a in iteration.actions if a.kind == "step"}
            numbers = [number for number in numbers if number in stepped] or numbers
        optimizers = [self.optimizers[number] for number in numbers]
        iterations = list(_renumbered(self.iterations, {number: at for at, number in enumerate(numbers)}))
        return TrainingStep(
            iterations, modules, leaves, optimizers, dict(self.starts), lost, seconds=self.seconds, begins=self.begins
        )

    def used_leaves(self) -> set[int]:
        """Loose leaves that persist: those that an optimizer owns, or that more than one iteration uses."""
        owned = {id(p) for start in self.optimizers.values() for group in start.parameters for p in group}
        counts: dict[int, int] = {}
        for iteration in self.iterations:
            found: list[Any] = []
            for backward in iteration.backwards:
                for entry in backward.entries:
                    walk((entry.args, entry.kwargs), found.append)
            for key in {id(item.tensor) for item in found if isinstance(item, Leaf)}:
                counts[key] = counts.get(key, 0) + 1
        return owned | {key for key, count in counts.items() if count > 1}

    def clear(self) -> None:
        """Let go of models, weights and batches; what `training_step` gave out keeps its own."""
        self.iterations = []
        self.modules, self.leaves, self.optimizers, self.starts, self.seconds = {}, {}, {}, {}, {}


def _renumbered(iterations: list[Iteration], numbers: dict[int, int]) -> Iterable[Iteration]:
    """The optimizers of the actions by their place among those that were kept."""
    for iteration in iterations:
        moved = any(
            action.kind == "step" and numbers.get(action.optimizer) != action.optimizer for action in iteration.actions
        )
        if not moved:
            yield iteration
            continue
        actions: list[Action] = [
            replace(a, optimizer=numbers[a.optimizer]) if a.kind == "step" else a
            for a in iteration.actions
            if a.kind != "step" or a.optimizer in numbers
        ]
        yield Iteration(actions, iteration.bytes)


def _same(kept: Tensor, tensor: Tensor) -> bool:
    alike = kept.device == tensor.device and kept.dtype == tensor.dtype and kept.requires_grad == tensor.requires_grad
    return alike and torch.equal(kept, tensor)
