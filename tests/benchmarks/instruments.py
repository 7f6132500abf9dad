"""What a training step is timed with: netdoctor's modes, torch's own tools, hooks as one writes them, and whatever peers there are.

An instrument is switched on and off between blocks of steps, so that a slow moment of the machine hits both the bare and the
instrumented steps.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.optim.optimizer as optimizers
from torch import Tensor

from netdoctor.judging import Options
from netdoctor.session import Session
from tests.benchmarks.workloads import Loaded

SETTLED = 5000  # a step in the middle of a long training


class Instrument:
    """Bare steps; the others override these."""

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.optimizer, self.step = loaded

    def on(self) -> None:
        """Instrument the steps that follow."""

    def off(self) -> None:
        """Leave them bare."""

    def close(self) -> None:
        """End for good; it is off."""


class Watched(Instrument):
    """A session, as `netdoctor.watch` has it."""

    exact = False

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.session = Session(Options(experiments=False, exact=self.exact))
        self.session.start()
        self.session.include(self.model, self.optimizer)
        self._observer, self._taps = self.session._observer, self.session._taps
        self._hooks: tuple[dict[int, Any], dict[int, Any]] = ({}, {})

    @property
    def originals(self) -> list[Any]:
        """The functions of torch that the session's stand in the place of."""
        return [original for _, _, original, _, _ in self._taps._patches._done]

    def on(self) -> None:
        for owner, name, _, replacement, _ in self._taps._patches._done:
            setattr(owner, name, replacement)
        for there, kept in zip(_global_hooks(), self._hooks, strict=True):
            there.update(kept)

    def off(self) -> None:
        """Everything that was replaced in torch is as it was; the session knows nothing of the steps that follow."""
        for owner, name, original, _, defined_here in reversed(self._taps._patches._done):
            if defined_here:
                setattr(owner, name, original)
            else:
                delattr(owner, name)
        self._hooks = tuple(dict(there) for there in _global_hooks())  # type: ignore[assignment]
        for there in _global_hooks():
            there.clear()

    def settle(self, sampled: bool) -> None:
        """Go on as in the middle of a long training, with every step sampled or none; the steps before must have been seen."""
        self._observer.step = max(self._observer.step, SETTLED)
        self._observer.schedule.due = lambda _: sampled  # type: ignore[method-assign]
        for _ in range(3):
            self.step()
        # Where a layer is a function of its own (attention), sampled steps are watched operation by operation.
        assert sampled or self._observer.light is not None, "the loop was not recognised as one that repeats itself"

    def close(self) -> None:
        self.on()
        self.session.stop()
        assert not self.session.recording.faults, self.session.recording.faults


class Tripwire(Watched):
    """A step that is not sampled."""

    sampled = False

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        for _ in range(26):  # the first 24 are kept to be run again
            self.step()
        self.settle(self.sampled)
        self.off()


class Exact(Tripwire):
    """The same, with every layer's output read."""

    exact = True


class Full(Tripwire):
    """A step that is sampled."""

    sampled = True


class Anomaly(Instrument):
    """`torch.autograd.set_detect_anomaly`."""

    def on(self) -> None:
        torch.autograd.set_detect_anomaly(True, check_nan=True)

    def off(self) -> None:
        torch.autograd.set_detect_anomaly(False)


class Hooks(Instrument):
    """Hooks as one writes them: five statistics with `.item()` of each output and gradient."""

    def on(self) -> None:
        leaves = [module for module in self.model.modules() if not list(module.children())]
        self._handles = [leaf.register_forward_hook(lambda m, i, o: self.look(o)) for leaf in leaves]
        self._handles += [p.register_hook(self.look) for p in self.model.parameters()]

    def off(self) -> None:
        for handle in self._handles:
            handle.remove()

    def look(self, values: Any) -> None:
        """What is asked of an output or a gradient."""
        if isinstance(values, Tensor):
            x = values.detach()
            for statistic in (x.mean(), x.std(), x.abs().max(), x.norm(), (x == 0).float().mean()):
                statistic.item()


class Finite(Hooks):
    """Hooks that ask whether each output is finite."""

    def on(self) -> None:
        leaves = [module for module in self.model.modules() if not list(module.children())]
        self._handles = [leaf.register_forward_hook(lambda m, i, o: self.look(o)) for leaf in leaves]

    def look(self, values: Any) -> None:
        if isinstance(values, Tensor):
            assert torch.isfinite(values.detach()).all()


class TotalNorm(Instrument):
    """`torch.nn.utils.get_total_norm` before each optimizer step, read back."""

    def on(self) -> None:
        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            assert torch.nn.utils.get_total_norm(gradients).isfinite().item()

        self._handle = self.optimizer.register_step_pre_hook(look)

    def off(self) -> None:
        self._handle.remove()


class Sums(Instrument):
    """The cheapest tripwire that one can write by hand: before each optimizer step the sum of every gradient, read back."""

    def on(self) -> None:
        parameters = list(self.model.parameters())

        def look(*_: Any) -> None:
            assert math.isfinite(sum(p.grad.sum().item() for p in parameters if p.grad is not None))

        self._handle = self.optimizer.register_step_pre_hook(look)

    def off(self) -> None:
        self._handle.remove()


class CheapStatistics(Instrument):
    """Of every output and its gradient, weight and its gradient the sum of squares, of outputs the sums over the batch, of updates
    1,024 entries: by the cheapest kernels, read back once per step. A sampled step tells idle rows, active units, the spread
    over the batch, and the mean and extremes of vectors as well."""

    def on(self) -> None:
        leaves = [module for module in self.model.modules() if not list(module.children())]
        self._parameters, self._found, self._old = list(self.model.parameters()), [], []
        self._handles: list[Any] = [leaf.register_forward_hook(self._output) for leaf in leaves]
        self._handles += [self.optimizer.register_step_pre_hook(self._before)]
        self._handles += [self.optimizer.register_step_post_hook(self._after)]

    def off(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _square(self, values: Tensor) -> None:
        flat = values.detach().reshape(-1)
        self._found.append(torch.dot(flat, flat))

    def _output(self, module: Any, given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._square(output)
            self._square(output.detach().sum(0))
            if output.requires_grad:
                output.register_hook(self._square)

    def _samples(self) -> list[Tensor]:
        return [p.detach().reshape(-1)[:: max(1, p.numel() // 1024)].clone() for p in self._parameters]

    def _before(self, *_: Any) -> None:
        for parameter in self._parameters:
            if parameter.grad is not None:
                self._square(parameter.grad)
            self._square(parameter)
        self._old = self._samples()

    def _after(self, *_: Any) -> None:
        for old, new in zip(self._old, self._samples(), strict=True):
            self._square(new - old)
        torch.stack(self._found).tolist()
        self._found.clear()


class WandbWatch(Instrument):
    """`wandb.watch(model, log="all", log_freq=1)`, offline."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        import wandb

        self._wandb, self._bare = wandb, self.step
        self._run = wandb.init(mode="offline", project="overhead", settings=wandb.Settings(silent=True))

    def on(self) -> None:
        self._wandb.watch(self.model, log="all", log_freq=1)

    def off(self) -> None:
        self._wandb.unwatch(self.model)

    def close(self) -> None:
        self._run.finish()


class UnderflowOverflow(Instrument):
    """transformers' `DebugUnderflowOverflow`, whose hooks cannot be taken out again but by force."""

    def on(self) -> None:
        from transformers.debug_utils import DebugUnderflowOverflow

        self._debug = DebugUnderflowOverflow(self.model, max_frames_to_save=1)

    def off(self) -> None:
        for module in self.model.modules():
            module._forward_hooks.clear()


MODES: dict[str, type[Instrument]] = {
    "tripwire": Tripwire,
    "exact": Exact,
    "full": Full,
    "detect_anomaly": Anomaly,
    "hooks, five statistics": Hooks,
    "hooks, isfinite": Finite,
    "get_total_norm": TotalNorm,
    "sums of all gradients, by hand": Sums,
    "squares of all tensors, by hand": CheapStatistics,
}
PEERS: dict[str, tuple[str, type[Instrument]]] = {
    "wandb.watch, every step": ("wandb", WandbWatch),
    "DebugUnderflowOverflow": ("transformers", UnderflowOverflow),
}


def instruments() -> tuple[dict[str, type[Instrument]], list[str]]:
    """(all that can be timed here, the packages of those that cannot)."""
    there = {name: kind for name, (package, kind) in PEERS.items() if importlib.util.find_spec(package)}
    return MODES | there, sorted(package for package, _ in PEERS.values() if not importlib.util.find_spec(package))


@contextmanager
def switched_on(kind: Callable[[Loaded], Instrument], loaded: Loaded) -> Iterator[Instrument]:
    """An instrument, off at first and at the end."""
    made = kind(loaded)
    try:
        yield made
    finally:
        made.close()


def _global_hooks() -> tuple[dict[int, Any], dict[int, Any]]:
    return optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks
