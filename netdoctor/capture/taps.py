"""Installs the observation into torch, process-wide, and takes it out again."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from netdoctor.capture import clipping, unseen
from netdoctor.capture.checkpoints import Checkpoints
from netdoctor.capture.customs import watched_apply
from netdoctor.capture.gradients import by_hand
from netdoctor.capture.kept_states import KeptStates
from netdoctor.capture.module_calls import module_call
from netdoctor.capture.observer import Observer
from netdoctor.capture.patching import FUNCTIONS, Patches, announced
from netdoctor.capture.pattern import call_site
from netdoctor.capture.reporting import reporting
from netdoctor.capture.source import user_line
from netdoctor.capture.training import TrainingTaps
from netdoctor.capture.warned import users_warnings


class Taps:
    """All the places where torch tells the observer something. `install` and `remove` may each be called once."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.training = TrainingTaps(observer)
        self._patches = Patches()
        self._handles: list[Any] = []
        self._intercepted: set[str] = set()
        observer.pattern.intercept = self._intercept
        self._building = 0  # > 0 while a scheduler is being built or stepped
        self._switching = False  # a module and its children change between train and eval mode

    def install(self) -> None:
        """Start to observe."""
        # The compiler keeps what it finds in torch when it is loaded, as the first optimizer does: that must not be ours.
        importlib.import_module("torch._dynamo")
        wrap = self._patches.wrap
        wrap(nn.Module, "__call__", functools.partial(module_call, self._observer))
        wrap(nn.Module, "__init__", self._module_init)
        wrap(nn.Module, "load_state_dict", self._noting("load_state"))
        wrap(nn.Module, "train", self._mode_change)
        kept = KeptStates(self._observer.recorder, self.training.optimizers.any_fused)
        for part in (self.training.flags, self.training.frozen_norms, self._observer.evaluation.stuck, kept):
            self._observer.containment.run("parts in a state", part.install, self._patches, self._safely)
        wrap(Tensor, "backward", self._tensor_backward)
        wrap(torch.autograd, "backward", self._autograd_backward)
        wrap(torch.autograd, "grad", by_hand(self, lambda: bool(self.training.optimizers.alive)))
        wrap(FUNCTIONS, "apply", lambda original: watched_apply(self._observer, original))
        wrap(Optimizer, "__init__", self._optimizer_init)
        wrap(Optimizer, "zero_grad", self._zero_grad)
        wrap(nn.Module, "zero_grad", self._zero_grad)
        wrap(clip_grad, "_clip_grads_with_norm_", clipping.by_norm(self.training, self._safely))
        wrap(clip_grad, "clip_grad_value_", clipping.by_value(self.training, self._safely))
        wrap(nn.utils, "clip_grad_value_", clipping.by_value(self.training, self._safely))
        for kind in (LRScheduler, lr_scheduler.SequentialLR, lr_scheduler.ChainedScheduler):
            wrap(kind, "__init__", self._scheduler_init)
        for kind in vars(lr_scheduler).values():
            if isinstance(kind, type) and issubclass(kind, LRScheduler) and "step" in vars(kind):
                wrap(kind, "step", self._scheduler_step)
        Checkpoints(self._observer.facts, self._observer.containment).install(wrap)
        wrap(torch.amp.GradScaler, "scale", self._scale)
        wrap(torch.amp.GradScaler, "step", self._scaler_step)
        wrap(torch, "compile", self._unseen("compiled function"))
        wrap(warnings, "showwarning", users_warnings)
        wrap(sys.modules["torch.multiprocessing.spawn"], "start_processes", self._unseen("spawned"))
        hook = nn.modules.module.register_module_module_registration_hook
        self._handles = [
            hook(self._safely("module registration", self._observer.names.registered)),
            register_optimizer_step_pre_hook(self._before_step()),
            register_optimizer_step_post_hook(self._after_step()),
        ]
        self._observer.containment.run("first step", self._observer.begin_step)

    def remove(self) -> None:
        """Stop observing; torch is left as it was."""
        self._safely("last step", self._observer.settle)()
        self._observer.mode.leave()
        self._observer.containment.run("end of the pattern", self._observer.pattern.release)
        self._observer.containment.run("end of the parameters", self.training.release)
        self._observer.containment.run("outputs of layers", self._observer.layers.statistics.forget)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._patches.remove()
        self._observer.suspended += 1  # what another session's wrappers keep in place has nothing more to say

    def _safely(self, where: str, work: Any) -> Any:
        observer = self._observer

        def run(*args: Any, **kwargs: Any) -> None:
            if observer.suspended or threading.get_ident() != observer.thread:
                return
            observer.suspended += 1
            try:
                observer.containment.run(where, work, *args, **kwargs)
            finally:
                observer.suspended -= 1
            self._raise_pending()

        return run

    def _before_step(self) -> Any:
        """The hook on optimizer steps that are about to be made; in a plain step it goes the short way."""
        observer, get_ident = self._observer, threading.get_ident
        safely = self._safely("before_step", lambda o: unseen.but_meta(observer, o, self.training.before_step))

        def hook(optimizer: Optimizer, *_: Any) -> None:
            light = observer.light
            if light is not None and light.on and not observer.suspended and get_ident() == observer.thread:
                try:
                    if light.before(optimizer):
                        return
                except Exception as error:
                    light.failed("before_step", error)
            safely(optimizer)

        return hook

    def _after_step(self) -> Any:
        """The hook on optimizer steps that were made."""
        observer, get_ident = self._observer, threading.get_ident
        safely = self._safely("after_step", lambda o: unseen.but_meta(observer, o, self.training.after_step))

        def hook(optimizer: Optimizer, *_: Any) -> None:
            light, known = observer.light, False
            if light is not None and light.on and not observer.suspended and get_ident() == observer.thread:
                try:
                    known = light.after(optimizer)
                except Exception as error:
                    light.failed("after_step", error)
            if not known:
                safely(optimizer)
            elif observer.pending is not None:
                self._raise_pending()

        return hook

    def _raise_pending(self) -> None:
        if self._observer.pending is not None:
            error, self._observer.pending = self._observer.pending, None
            raise error

    def _intercept(self, name: str) -> None:
        """Have calls of a function of torch.nn.functional told to the pattern of the loop. A weak reference: torch's own tables
        may keep the wrapper, and must not keep the observation with it."""
        if name not in self._intercepted:
            self._intercepted.add(name)
            self._patches.wrap(nn.functional, name, functools.partial(reporting, weakref.ref(self._observer), name))
            replaced = vars(nn.functional)[name]
            self._observer.reported[replaced] = replaced.__wrapped__

    def _module_init(self, original: Any) -> Any:
        observed = self._safely("module construction", self._observer.names.constructed)

        @functools.wraps(original)
        def __init__(module: nn.Module, /, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            observed(module)

        return __init__

    def _unseen(self, kind: str) -> Any:
        note = self._safely("blind spot", lambda: unseen.say(self._observer, kind))
        return lambda original: announced(original, note)

    def _noting(self, kind: str) -> Any:
        observer = self._observer
        note = self._safely(kind, lambda: observer.recorder.count(kind, observer.step, source=user_line()))

        return lambda original: announced(original, note)

    def _mode_change(self, original: Any) -> Any:
        observed = self._safely("mode change", self.training.mode_changed)

        @functools.wraps(original)
        def train(module: nn.Module, mode: bool = True) -> Any:
            if self._switching:  # a module switches its children by the same call: the user made only the outermost
                return original(module, mode)
            self._switching = True
            try:
                observed(mode)
                return original(module, mode)
            finally:
                self._switching = False

        return train

    def _scheduler_init(self, original: Any) -> Any:
        made = self._safely("scheduler", self.training.scheduler_made)

        @functools.wraps(original)
        def __init__(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            self._building += 1  # its own first step sets the first learning rate, and is no call of the user's
            try:
                original(scheduler, *args, **kwargs)
            finally:
                self._building -= 1
            made(scheduler)

        return __init__

    def _scheduler_step(self, original: Any) -> Any:
        stepped = self._safely("scheduler step", self.training.scheduler_stepped)

        @functools.wraps(original)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            if self._building:
                return original(scheduler, *args, **kwargs)
            stepped()
            self._building += 1  # a schedule made of schedules steps them in turn: one call is one call
            try:
                return original(scheduler, *args, **kwargs)
            finally:
                self._building -= 1

        return step

    def _tensor_backward(self, original: Any) -> Any:
        @functools.wraps(original)
        def backward(
            self: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
        ) -> Any:
            retain = bool(retain_graph or create_graph)
            light = None if is_compiling() else observer.light
            plain = light is not None and light.on and gradient is None and inputs is None and not retain
            free = not observer.in_backward and not observer.suspended and get_ident() == observer.thread
            if light is not None and plain and free:
                try:
                    known = light.backward(self, sys._getframe(1))
                except Exception as error:
                    known = light.failed("plain backward", error)
                if known:
                    observer.in_backward = True
                    try:
                        return original(self)
                    finally:
                        observer.in_backward = False
            return taps.run_backward(
                [self], (gradient,), retain, lambda: original(self, gradient, retain_graph, create_graph, inputs)
            )

        taps, observer, get_ident, is_compiling = self, self._observer, threading.get_ident, torch.compiler.is_compiling
        return backward

    def _autograd_backward(self, original: Any) -> Any:
        @functools.wraps(original)
        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            if observer.in_backward:
                return original(tensors, grad_tensors, *args, **kwargs)
            losses = [tensors] if isinstance(tensors, Tensor) else [t for t in tensors if isinstance(t, Tensor)]
            seeds = (
                (grad_tensors,) if isinstance(grad_tensors, Tensor) else tuple(grad_tensors or (None,) * len(losses))
            )
            retain = bool(kwargs.get("retain_graph") or kwargs.get("create_graph"))
            return taps.run_backward(losses, seeds, retain, lambda: original(tensors, grad_tensors, *args, **kwargs))

        taps, observer = self, self._observer
        return backward

    def run_backward(self, losses: list[Tensor], seeds: tuple[Any, ...], retain: bool, work: Any) -> Any:
        """Run a backward call for the user, and look at what goes in and out."""
        site = call_site(sys._getframe(2))
        observer = self._observer
        if observer.in_backward or observer.suspended:
            return work()
        if unseen.elsewhere(observer) or unseen.on_meta(observer, losses):
            return work()
        if observer.detailed:
            observer.ours("outputs of layers", observer.layers.statistics.settle)
        if observer.light is not None and (retain or any(seed is not None for seed in seeds)):
            observer.light.leave()
        if observer.light is None or not observer.ours("known backward", self.training.known_backward, losses, site):
            self._safely("backward", self.training.before_backward)(losses, seeds, retain, site)
            observer.mode.leave()
        observer.in_backward = True
        try:
            result = work()
        finally:
            observer.in_backward = False
        if observer.light is not None:
            self._raise_pending()
            return result
        self._safely("after backward", self.training.after_backward)()
        if observer.program.functional or retain:  # with a graph kept, another loss will be made of what there is
            observer.mode.enter()
        return result

    def _optimizer_init(self, original: Any) -> Any:
        seen = self._observer
        observed = self._safely("optimizer construction", lambda o: unseen.but_meta(seen, o, self.training.made))

        @functools.wraps(original)
        def __init__(optimizer: Optimizer, /, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            observed(optimizer)

        return __init__

    def _zero_grad(self, original: Any) -> Any:
        observer, note = self._observer, self._safely("zero_grad", self.training.zero_grad)

        @functools.wraps(original)
        def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
            light, known = observer.light, False
            if light is not None and light.on:
                try:
                    known = light.zero(self)
                except Exception as error:
                    light.failed("plain zero_grad", error)
            if not known:
                note(self)
            if not observer.mode.on:
                return original(self, *args, **kwargs)
            observer.mode.leave()
            try:
                return original(self, *args, **kwargs)
            finally:
                observer.mode.enter()

        return zero_grad

    def _scaler_step(self, original: Any) -> Any:
        skipped = self._safely("skipped step", self.training.skipped)

        @functools.wraps(original)
        def step(scaler: Any, optimizer: Any, /, *args: Any, **kwargs: Any) -> Any:
            before = sum(self.training.steps)
            result = original(scaler, optimizer, *args, **kwargs)
            if sum(self.training.steps) == before:
                skipped()
            return result

        return step

    def _scale(self, original: Any) -> Any:
        observed = self._safely("loss scaler", self.training.scaled)

        @functools.wraps(original)
        def scale(scaler: Any, outputs: Any) -> Any:
            scaled = original(scaler, outputs)
            observed(scaled, outputs)
            return scaled

        return scale
