"""A copy of everything that trains, on which the captured iterations can be run again, with or without a change."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.ranks import alone
from netdoctor.capture.step import (
    Action,
    Copies,
    Iteration,
    OptimizerStart,
    Replay,
    TrainingStep,
    preserved_random_state,
    refuse_overwritten,
)
from netdoctor.capture.tape import Entry
from netdoctor.errors import CannotReplayError

Edit = Callable[[Entry, Any, Any], tuple[Any, Any]]


# Momenta as they are written in practice, the plain rule first; losses that must come back: one for the learning rate, and some
# in which a momentum shows; relative, as sums in another order differ by 1e-6 after a few steps, and a momentum by some percent.
MOMENTA, TOLD, SAME = (0.0, 0.9, 0.95, 0.99, 0.8, 0.5), 6, 1e-3


class Budget:
    """Seconds that experiments may take, and how many are left."""

    def __init__(self, seconds: float) -> None:
        self._start = time.perf_counter()
        self._seconds = seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds that remain; negative when overdrawn."""
        return self._seconds - self.spent

    def share(self, seconds: float) -> Budget:
        """A budget for one experiment: `seconds`, or what is left."""
        return Budget(max(0.0, min(seconds, self.left)))


@dataclass(slots=True)
class Run:
    """The losses of a run on a copy. `ended`: "finished", "non-finite", "out of time" or "stopped" (by the caller)."""

    losses: list[float] = field(default_factory=list)
    ended: str = "finished"
    seconds: float = 0.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the user's model prints or warns in an experiment was said before; random states are put back at the end."""
    with (
        preserved_random_state(),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        torch.enable_grad(),
        alone(),
    ):
        warnings.simplefilter("ignore")
        yield


class Sandbox:
    """Copies of models, loose weights and optimizers in the state from before the first step.

    `optimizer` replaces the user's optimizers by one over everything that they train; `lr_factor` scales the user's learning rates.
    `rule` is that of a loop without an optimizer, where it is not to be found out: learning rate and momentum.
    """

    def __init__(
        self,
        step: TrainingStep,
        lr_factor: float = 1.0,
        optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
        edit: Edit | None = None,
        rule: tuple[float, float] | None = None,
    ) -> None:
        self.step = step
        self.copies: Copies = step.copies()
        self.edit = edit
        self.clipping = True
        self.pinned: dict[
            str, Any
        ] = {}  # options that a treatment set, and the script's own schedule does not set again
        self._lr_factor = lr_factor
        self._usual = usual_rate(step) if lr_factor != 1.0 else None
        self._own = optimizer is None
        self._by_hand = False
        self.optimizers: list[Optimizer]
        if optimizer is None and not step.optimizers:
            self._by_hand = True
            lr, momentum = rule or hand_written(step)
            self.optimizers = [torch.optim.SGD(self.trainable(), lr=lr * lr_factor, momentum=momentum)]
        elif optimizer is None:
            self.optimizers = [copied_optimizer(start, self.copies, lr_factor) for start in step.optimizers]
        else:
            self.optimizers = [optimizer(self.trainable())]
        for group in (g for made in self.optimizers if self._usual is not None for g in made.param_groups):
            group["lr"] = (self._usual or 0.0) * lr_factor

    def trainable(self) -> list[Tensor]:
        """Copies of what the user's optimizers train; of everything that requires grad where there is no optimizer."""
        found = {id(p): self.copies.of(p) for p in trained_originals(self.step)}
        return [p for p in found.values() if isinstance(p, Tensor) and p.requires_grad]

    def modules(self) -> list[nn.Module]:
        """The copied models, without those that are parts of another one."""
        copied = [self.copies.of(module) for module in self.step.modules]
        parts = {id(child) for module in copied for child in module.modules() if child is not module}
        return [module for module in copied if id(module) not in parts]

    def iterate(self, iteration: Iteration, first_pass: bool = True) -> float:
        """Run one captured iteration: forward, backward, clipping, step. Returns the sum of its losses from before the step."""
        replay = Replay(self.copies)
        total, stepped = 0.0, False
        if not self._own:
            self._clear(self.trainable())
        # A loop without an optimizer moves its weights before the next zero_grad, which the captured step may end with.
        moves = max((n for n, action in enumerate(iteration.actions) if action.kind != "zero"), default=-1)
        for number, action in enumerate(iteration.actions):
            if action.backward is not None:
                refuse_overwritten(action.backward)
                if action.backward.fresh and self._own:
                    self._clear(self.trainable())
                loss = replay.loss(action.backward, self.edit)
                total += float(loss.detach())
                if not math.isfinite(total):
                    return total
                loss.backward(retain_graph=action.backward.retain)
            elif self._own:
                self._act(action, first_pass)
            else:
                self._change_gradients(action)
            stepped = stepped or action.kind == "step"
            if self._by_hand and number == moves:
                self.optimizers[0].step()
        if not self._own:
            self.optimizers[0].step()
        elif not stepped and not self._by_hand:
            raise CannotReplayError("no optimizer step was seen in the captured iteration")
        return total

    def _clear(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            parameter.grad = None

    def _act(self, action: Action, first_pass: bool) -> None:
        if action.kind == "zero":
            self._clear([c for c in (self.copies.of(p) for p in action.parameters) if isinstance(c, Tensor)])
        elif action.kind != "step":
            self._change_gradients(action)
        else:
            optimizer = self.optimizers[action.optimizer]
            if first_pass:
                for group, lr in zip(optimizer.param_groups, action.lrs, strict=False):
                    if "lr" in group:
                        group["lr"] = (lr if self._usual is None else self._usual) * self._lr_factor
                for group, options in zip(optimizer.param_groups, action.options, strict=False):
                    group.update(options | self.pinned)
            if isinstance(optimizer, torch.optim.LBFGS):
                raise CannotReplayError("L-BFGS evaluates its loss many times a step, which is not captured")
            optimizer.step()

    def _change_gradients(self, action: Action) -> None:
        held = [c for c in (self.copies.of(p) for p in action.parameters) if isinstance(c, Tensor)]
        if action.kind == "scale":
            torch._foreach_mul_([p.grad for p in held if p.grad is not None], action.limit)
        elif action.kind != "clip" or not self.clipping:
            return
        elif action.by_value:
            nn.utils.clip_grad_value_(held, action.limit)
        else:
            nn.utils.clip_grad_norm_(held, action.limit, action.norm_type)

    def run(
        self, iterations: list[Iteration], steps: int, budget: Budget, stop: Callable[[list[float]], bool] | None = None
    ) -> Run:
        """Cycle through iterations for `steps` steps, until something is not finite, `stop(losses)` says so, or time is up."""
        result = Run()
        began = time.perf_counter()
        for number in range(steps):
            if budget.left <= 0:
                result.ended = "out of time"
                break
            try:
                loss = self.iterate(iterations[number % len(iterations)], number < len(iterations))
            except RuntimeError as error:  # linear algebra says so where a matrix holds NaN, or became singular
                if not str(error).startswith("linalg."):
                    raise
                loss = math.nan
            result.losses.append(loss)
            if not math.isfinite(loss):
                result.ended = "non-finite"
                break
            if stop is not None and stop(result.losses):
                result.ended = "stopped"
                break
        result.seconds = time.perf_counter() - began
        return result


def trained_originals(step: TrainingStep) -> list[Tensor]:
    """What the user's optimizers train; everything that requires grad where there is no optimizer."""
    held = [p for start in step.optimizers for group in start.parameters for p in group]
    return held or [p for module in step.modules for p in module.parameters() if p.requires_grad] + step.leaves


def usual_rate(step: TrainingStep) -> float | None:
    """What stands for a learning rate that is 0 in all captured steps, and so in all its multiples: a tenth of what is usual,
    1e-2 for SGD and 1e-3 for the others (the defaults of torch.optim). None where a rate is above 0."""
    rates = [float(group["lr"]) for start in step.optimizers for group in start.groups if "lr" in group]
    rates += [lr for it in step.iterations for action in it.actions if action.kind == "step" for lr in action.lrs]
    if not rates or any(rate != 0 for rate in rates):
        return None
    return 1e-3 if type(step.optimizers[0].optimizer) is torch.optim.SGD else 1e-4


def hand_written(step: TrainingStep) -> tuple[float, float]:
    """Learning rate and momentum of a loop that writes `w -= lr * gradient`, or `v = m * v + gradient; w -= lr * v` itself.

    Raises CannotReplayError where no such rule gives the losses of its first steps on a copy (Adam or clipping by hand).
    """
    if step.rule is None:
        lr = _first_rate(step)
        step.rule = next(((lr, m) for m in MOMENTA if _gives_its_losses(step, (lr, m))), None)
    if step.rule is None:
        raise CannotReplayError("the loop updates its weights by a rule of its own, which could not be recognised")
    return step.rule


def _gives_its_losses(step: TrainingStep, rule: tuple[float, float]) -> bool:
    sandbox = Sandbox(step, rule=rule)
    for iteration in step.iterations[:TOLD]:
        was = sum(backward.value for backward in iteration.backwards)
        again = sandbox.iterate(iteration)
        if not math.isfinite(was) or not math.isfinite(again):
            return math.isfinite(was) == math.isfinite(again)
        if abs(again - was) > SAME * max(abs(was), 1e-12):
            return False
    return True


def _first_rate(step: TrainingStep) -> float:
    """How far the first step moved the weights along their gradients. CannotReplayError where that is not all of the move."""
    copies = step.copies()
    replay = Replay(copies)
    for backward in step.iterations[0].backwards:
        refuse_overwritten(backward)
        replay.loss(backward).backward(retain_graph=backward.retain)
    along, square, moved = 0.0, 0.0, 0.0
    for key, (original, start) in step.starts.items():
        copied, second = copies.of(original), step.seconds.get(key)
        if second is None or not isinstance(copied, Tensor) or copied.grad is None:
            continue
        change, gradient = (start - second).detach().double(), copied.grad.double()
        along += float((change * gradient).sum())
        square += float(gradient.square().sum())
        moved += float(change.square().sum())
    lr = along / square if square else 0.0
    if lr <= 0 or moved <= 0 or abs(1 - lr * along / moved) > 1e-3:
        raise CannotReplayError("the loop updates its weights by a rule of its own, which could not be recognised")
    return lr


def copied_optimizer(start: OptimizerStart, copies: Copies, lr_factor: float = 1.0) -> Optimizer:
    """The user's optimizer over the copies, with the options and state from before its first step."""
    memo: dict[int, Any] = {}
    for group in start.parameters:
        for parameter in group:
            copied = copies.of(parameter)
            if not isinstance(copied, Tensor):
                raise CannotReplayError("the optimizer trains a tensor that the captured step does not use")
            memo[id(parameter)] = copied
    original = start.optimizer
    made: Optimizer = type(original).__new__(type(original))
    for name, value in vars(original).items():
        if name not in ("state", "param_groups", "step") and "hook" not in name:
            made.__dict__[name] = copy.deepcopy(value, memo)
    made.__setstate__(
        {"defaults": original.defaults, "state": defaultdict(dict), "param_groups": _groups(start, memo, lr_factor)}
    )
    for parameters in start.parameters:
        for parameter in parameters:
            if id(parameter) in start.state:
                made.state[memo[id(parameter)]] = copy.deepcopy(start.state[id(parameter)])
    return made


def _groups(start: OptimizerStart, memo: dict[int, Any], lr_factor: float) -> list[dict[str, Any]]:
    groups = []
    for options, parameters in zip(start.groups, start.parameters, strict=True):
        group = {**copy.deepcopy(options), "params": [memo[id(p)] for p in parameters]}
        if "lr" in group:
            group["lr"] = group["lr"] * lr_factor
        groups.append(group)
    return groups
