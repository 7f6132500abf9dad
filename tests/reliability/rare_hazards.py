"""Rarer hazards of hooking, in the form of hazards.py: views, containers of the user's own, sparse inputs, failures in backward."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from tests.reliability.hazards import Hazard, Work, model, output
from tests.reliability.trainings import STEPS, batch, fit, mlp, state_of


@dataclass
class Both:
    """An output as a dataclass."""

    logits: Tensor
    hidden: Tensor | None = None


class Named(NamedTuple):
    """An output as a named tuple."""

    logits: Tensor
    hidden: Tensor | None = None


def part_overwritten(m: Work, x: Tensor) -> Any:
    h = m.one(x)
    h[:, 1:3] = 0.5
    return m.two(h)


def view_overwritten(m: Work, x: Tensor) -> Any:
    """A module whose output is a view of its input, which is then changed through the view."""
    h = m.one(x).unsqueeze(-1)
    flat = m.inner(h)
    flat.mul_(2)
    return m.two(h.squeeze(-1) + flat)


def output_is_input(m: Work, x: Tensor) -> Any:
    h = m.inner(m.one(x))
    h += 1
    return m.two(h)


def chunks(m: Work, x: Tensor) -> Any:
    left, right = m.one(x).split([2, 3], dim=1)
    return m.two(torch.cat([left * 2, right.sigmoid()], 1))


def sparse_inputs() -> list[Tensor]:
    links = torch.eye(4).roll(1, 0).to_sparse()
    return fit(Work(lambda m, x: m.two(torch.sparse.mm(links, m.one(x)))))


class Fails(torch.autograd.Function):
    """Raises in every third backward."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Fails.calls += 1
        if Fails.calls % 3 == 0:
            raise ValueError("in the middle of backward")
        return gradient


def failing_backward() -> list[Tensor]:
    Fails.calls = 0
    net = Work(lambda m, x: m.two(Fails.apply(m.one(x))))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(STEPS):
        x, failed = batch(), True
        while failed:
            optimizer.zero_grad()
            try:
                net(x).square().mean().backward()
                failed = False
            except ValueError:
                pass
        optimizer.step()
    return state_of(net, optimizer)


def ensemble() -> list[Tensor]:
    """Several models as one, by stacked weights and vmap."""
    nets = [mlp() for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(nets)
    optimizer = torch.optim.SGD(list(weights.values()), lr=0.1)

    def one(w: Any, b: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(nets[0], (w, b), (x,))

    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.func.vmap(one, (0, 0, None))(weights, buffers, batch()).square().mean().backward()
        optimizer.step()
    return state_of(*weights.values())


def global_hook() -> list[Tensor]:
    seen: list[str] = []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    try:
        states = fit(mlp())
    finally:
        handle.remove()
    return [*states, torch.tensor(len(seen))]


def tensor_hooks(m: Work, x: Tensor) -> Any:
    h = m.one(x)
    if h.requires_grad:
        h.retain_grad()
        h.register_hook(lambda gradient: gradient * 0.5)
    return m.two(h)


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still there
        part: nn.Module = torch.jit.trace(nn.Linear(5, 5), torch.randn(4, 5))
    return part


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still there
        part: nn.Module = nn.utils.weight_norm(nn.Linear(5, 5))
    return part


def forked() -> list[Tensor]:
    """A child that trains a little of its own in the middle of the training."""

    def loss(m: nn.Module, step: int) -> Tensor:
        if step == 3:
            child = os.fork()
            if not child:
                try:
                    fit(mlp(), steps=2)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
        out: Tensor = m(batch())
        return out.square().mean()

    return fit(mlp(), loss)


class Caller(nn.Module):
    """A module with a `__call__` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * 2)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def clamped() -> list[Tensor]:
    """Weights that the loop changes in place, between optimizer steps."""

    def loss(m: nn.Module, step: int) -> Tensor:
        with torch.no_grad():
            for parameter in m.parameters():
                parameter.clamp_(-0.2, 0.2)
        out: Tensor = m(batch())
        return out.square().mean()

    return fit(mlp(), loss)


def toggled() -> list[Tensor]:
    def loss(m: Any, step: int) -> Tensor:
        m[0].requires_grad_(step % 2 == 0)
        out: Tensor = m(batch())
        return out.square().mean()

    return fit(mlp(), loss)


def half() -> list[Tensor]:
    return fit(mlp().to(torch.bfloat16), lambda m, step: m(batch().to(torch.bfloat16)).square().mean())


_BOTH = ("one", "two")
RARE_HAZARDS = [
    Hazard("a dataclass as output", output(lambda t: Both(t), lambda o: o.logits), _BOTH),
    Hazard("a named tuple as output", output(lambda t: Named(t), lambda o: o.logits), _BOTH),
    Hazard("a part of an output overwritten", model(part_overwritten), _BOTH),
    Hazard("a view as output, overwritten", model(view_overwritten, nn.Flatten), _BOTH),
    Hazard("an output that is the input, overwritten", model(output_is_input, nn.Identity), _BOTH),
    Hazard("views of an output", model(chunks), _BOTH),
    Hazard("sparse inputs", sparse_inputs, _BOTH),
    Hazard("exceptions in backward", failing_backward, _BOTH),
    Hazard("an ensemble by vmap", ensemble, blind="torch.func"),
    Hazard("a hook of the user's on all modules", global_hook, ("0", "2")),
    Hazard("hooks of the user's on tensors", model(tensor_hooks), _BOTH),
    Hazard("traced part", model(lambda m, x: m.two(m.inner(m.one(x))), traced), _BOTH, blind="TorchScript"),
    Hazard("a forked child that trains", forked, ("0", "2")),
    Hazard("a module with a __call__ of its own", lambda: fit(Caller()), ("net.0", "net.2")),
    Hazard("weights clamped by the loop", clamped, ("0", "2")),
    Hazard("layers frozen in every other step", toggled, ("2",)),
    Hazard("weights in half precision", half, ("0", "2")),
    Hazard("complex numbers in between", model(lambda m, x: m.two(torch.fft.fft(m.one(x)).abs())), _BOTH),
    Hazard(
        "old weight norm",
        model(lambda m, x: m.two(m.inner(m.one(x))), old_weight_norm),
        _BOTH,
    ),
    Hazard(
        "spectral norm as a parametrization",
        model(lambda m, x: m.two(m.inner(m.one(x))), lambda: parametrizations.spectral_norm(nn.Linear(5, 5))),
        _BOTH,
    ),
]
