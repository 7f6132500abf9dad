"""The captured iterations: what the loop did in the first steps, and the weights from before them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.fault import faulty_step
from netdoctor.capture.naming import ModuleNames, Root
from netdoctor.capture.statistics import is_shard
from netdoctor.capture.step import Action, Iteration, OptimizerStart, TrainingStep
from netdoctor.capture.tape import Backward, Leaf, walk

MAX_ITERATIONS = 24
MAX_BYTES = 256 << 20  # of captured batches
MAX_MODULES = 256  # outermost ones: more are copies that a loop makes and throws away


class Program:
    """Captures iterations until there are enough, and snapshots what trains before it is trained."""

    def __init__(self, names: ModuleNames) -> None:
        self._names = names
        self.iterations: list[Iteration] = []
        self.current = Iteration()
        self.functional = False  # parameters are used outside of modules before any module runs
        self.keep_start = True  # costs one copy of the model's weights
        self.lost = ""
        self._bytes = 0
        self._modules: dict[int, nn.Module] = {}
        self._leaves: dict[int, Tensor] = {}
        self._optimizers: dict[int, OptimizerStart] = {}
        self._starts: dict[int, tuple[Tensor, Tensor]] = {}
        self._seconds: dict[int, Tensor] = {}
        self._fault: TrainingStep | None = None

    @property
    def capturing(self) -> bool:
        """Whether more iterations are wanted."""
        return len(self.iterations) < MAX_ITERATIONS and self._bytes < MAX_BYTES and self.keep_start

    @property
    def begun(self) -> bool:
        """Whether a backward call was captured: from then on what was kept as the start stands."""
        return bool(self.iterations or self.current.backwards)

    def see_module(self, module: nn.Module, root: Root, idle: bool = False) -> None:
        """An outermost module is about to run: keep the weights of the whole model as they are before its first step.

        `idle`: no result of an earlier call is alive, so a call before this one was no part of the first step.
        """
        top = root.module()
        again = idle and not self.begun
        if not self.capturing or len(self._modules) >= MAX_MODULES or (id(module) in self._modules and not again):
            return  # what runs only later is in no captured step: it is not held, for it may be a copy made in every step
        top = module if top is None else top
        self._modules[id(module)] = module
        self._modules.setdefault(id(top), top)
        for tensor in [*top.parameters(), *top.buffers(), *module.parameters(), *module.buffers()]:
            self._snapshot(tensor, again)

    def _snapshot(self, tensor: Tensor, again: bool = False) -> None:
        """Keep a tensor's value, once; `again`: anew, if it changed."""
        if nn.parameter.is_lazy(tensor) or tensor.is_meta or is_shard(tensor):
            return
        known = self._starts.get(id(tensor))
        if known is None or (again and not _same(known[1], tensor)):
            with torch.no_grad():
                self._starts[id(tensor)] = (tensor, tensor.detach().clone().requires_grad_(tensor.requires_grad))

    def see_optimizer(self, optimizer: Optimizer, index: int) -> None:
        """An optimizer is about to take its first step: keep its options and whatever state it was loaded with."""
        if index in self._optimizers or not self.keep_start:
            return
        parameters = [list(group["params"]) for group in optimizer.param_groups]
        groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        state: dict[int, Any] = {}
        for tensor, entry in optimizer.state.items():
            state[id(tensor)] = copy.deepcopy(entry)
        self._optimizers[index] = OptimizerStart(optimizer, groups, parameters, state)

    def backward(self, backward: Backward) -> None:
        """A backward call of the running iteration."""
        if not self.begun:  # weights may have been set after the first pass, which only asked for shapes
            for parameter in [p for module in self._modules.values() for p in module.parameters()]:
                self._snapshot(parameter, again=True)
        self.current.actions.append(Action("backward", backward))
        if not self.capturing:
            return

        def keep(item: Any) -> None:
            if isinstance(item, Leaf) and id(item.tensor) not in self._starts:
                self._leaves[id(item.tensor)] = item.tensor
                self._snapshot(item.tensor)

        for entry in backward.entries:
            walk((entry.args, entry.kwargs), keep)
        if len(self.iterations) == 1 and not self._optimizers and not self._seconds:
            # No optimizer steps so far: how the loop itself moved the weights tells its update rule.
            self._seconds = {key: tensor.detach().clone() for key, (tensor, _) in self._starts.items()}

    def end_iteration(self, step: int) -> None:
        """The running iteration is over: keep it if more are wanted."""
        done, self.current = self.current, Iteration()
        if not self.capturing or not done.backwards:
            return
        seen = {id(entry): entry for backward in done.backwards for entry in backward.entries}
        done.bytes = sum(entry.bytes() for entry in seen.values())
        self._bytes += done.bytes
        self.iterations.append(done)

    def training_step(self) -> TrainingStep:
        """Everything that experiments need."""
        modules = list(self._modules.values())
        used = self._used_leaves()
        owned = {id(p) for module in modules for p in module.parameters()}
        leaves = [leaf for key, leaf in self._leaves.items() if key not in owned and key in used]
        optimizers = [self._optimizers[index] for index in sorted(self._optimizers)]
        lost = self.lost
        if not self.iterations and not lost:
            lost = "no complete training step was captured"
        return TrainingStep(
            self.iterations,
            modules,
            leaves,
            optimizers,
            dict(self._starts),
            lost,
            seconds=self._seconds,
            fault=self._fault,
        )

    def keep_fault(self, backwards: list[Backward]) -> None:
        """The running step made a NaN or Inf, and the weights are still untouched: keep it and them."""
        if self.keep_start and self._fault is None:
            self._fault = faulty_step(self.training_step(), backwards)

    def release(self) -> None:
        """Let go of models, weights and batches; what `training_step` gave out keeps its own."""
        self.keep_start = False
        self.iterations, self.current, self._fault = [], Iteration(), None
        for held in (self._modules, self._leaves, self._optimizers, self._starts, self._seconds):
            held.clear()

    def changed(self) -> bool:
        """Whether any weight differs from what it was before the first step."""
        return any(
            tensor.requires_grad and not torch.equal(tensor.detach(), start) for tensor, start in self._starts.values()
        )

    def starts(self) -> list[tuple[Tensor, Tensor]]:
        """(tensor, its value from before its first step) of everything that was kept."""
        return list(self._starts.values())

    def loose(self) -> list[Tensor]:
        """Leaves that no module holds and no optimizer is known to own, and that train all the same: several iterations use
        them, or there is nothing else that could."""
        alone = not self._modules and not self._optimizers
        used = self._used_leaves()
        return [leaf for key, leaf in self._leaves.items() if alone or key in used]

    def parameters(self) -> Iterator[tuple[Tensor, str]]:
        """Everything that trains, as it is now, with its key."""
        held: list[Tensor] = [p for module in self._modules.values() for p in module.parameters()]
        held += [p for start in self._optimizers.values() for group in start.parameters for p in group]
        for parameter in {id(p): p for p in held}.values():
            yield parameter, self._names.parameter_key(parameter)

    def _used_leaves(self) -> set[int]:
        """Loose leaves that persist: those that an optimizer owns, or that more than one iteration uses."""
        owned = {id(p) for start in self._optimizers.values() for group in start.parameters for p in group}
        counts: dict[int, int] = {}
        for iteration in self.iterations:
            found: list[Any] = []
            for backward in iteration.backwards:
                for entry in backward.entries:
                    walk((entry.args, entry.kwargs), found.append)
            for key in {id(item.tensor) for item in found if isinstance(item, Leaf)}:
                counts[key] = counts.get(key, 0) + 1
        return owned | {key for key, count in counts.items() if count > 1}


def _same(kept: Tensor, tensor: Tensor) -> bool:
    alike = kept.device == tensor.device and kept.dtype == tensor.dtype and kept.requires_grad == tensor.requires_grad
    return alike and torch.equal(kept, tensor)
