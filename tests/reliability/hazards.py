"""The hazards of hooking into a training (peers.md d2), each a real training: it must give the same bits when it is observed,
the observation must see what it claims to see, and what it cannot see must be said."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from netdoctor.recording import Recording, Role, Stat
from tests.reliability.trainings import STEPS, batch, fit, mlp, state_of

Train = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Hazard:
    """A training, the names of the layers that must have been measured, forward and backward, and the blind spot to be said."""

    name: str
    train: Train
    layers: tuple[str, ...] = ()
    blind: str = ""  # a pattern
    steps: int = STEPS
    check: Callable[[Recording], bool] = lambda recording: True


class Work(nn.Module):
    """Two layers with something of the hazard's in between."""

    def __init__(self, work: Callable[..., Any], inner: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 3)
        self.inner = inner() if inner is not None else None
        self.work = work

    def forward(self, x: Any) -> Any:
        return self.work(self, x)


def model(work: Callable[..., Any], inner: Callable[[], nn.Module] | None = None, **options: Any) -> Train:
    """A training of `Work`."""
    return lambda: fit(Work(work, inner), **options)


def add_in_place(m: Work, x: Tensor) -> Any:
    h = m.one(x)
    h += x
    return m.two(h)


def overwritten(m: Work, x: Tensor) -> Any:
    return m.two(m.one(x).mul_(2).add_(1))


def shared(m: Work, x: Tensor) -> Any:
    return m.two(m.one(torch.tanh(m.one(x))))


def through_forward(m: Work, x: Tensor) -> Any:
    return m.two.forward(torch.relu(m.one.forward(x)))


class Pair:
    """An output of the user's own kind."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def output(wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> Train:
    """A model that gives something else than a tensor."""

    def loss(m: Any, step: int) -> Tensor:
        return unwrap(m(batch())).square().mean()

    return model(lambda m, x: wrap(m.two(torch.relu(m.one(x)))), loss=loss)


def none_inside() -> list[Tensor]:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    return fit(Work(lambda m, x: m.two(m.one(x)) + (0 if m.inner(x) is None else 1), Silent))


def checkpointed(reentrant: bool) -> Train:
    def work(m: Work, x: Tensor) -> Any:
        part = lambda h: F.dropout(torch.relu(m.one(h)), 0.3)  # noqa: E731
        return m.two(checkpoint(part, x.requires_grad_(), use_reentrant=reentrant))

    return model(work)


def functional() -> list[Tensor]:
    w, b = torch.randn(5, 3).requires_grad_(), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([w, b], lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.relu(batch() @ w + b).square().mean().backward()
        optimizer.step()
    return state_of(w, b)


def stateless() -> list[Tensor]:
    """torch.func: the model's weights live in a dictionary, and gradients come from a transform."""
    net = mlp()
    weights = {k: v.detach().clone().requires_grad_() for k, v in net.named_parameters()}
    optimizer = torch.optim.SGD(list(weights.values()), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.func.functional_call(net, weights, (batch(),)).square().mean().backward()
        optimizer.step()
    return state_of(*weights.values())


def transformed() -> list[Tensor]:
    net = mlp()
    weights = {k: v.detach() for k, v in net.named_parameters()}

    def loss(w: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(net, w, (x,)).square().mean()

    for _ in range(STEPS):
        slopes = torch.func.grad(loss)(weights, batch())
        weights = {k: v - 0.1 * slopes[k] for k, v in weights.items()}
    return state_of(*weights.values())


def mapped(m: Work, x: Tensor) -> Any:
    return torch.func.vmap(m.two)(torch.func.vmap(m.one)(x).relu())


class Scale(torch.autograd.Function):
    """A custom function with a backward of its own, kept under another name, as is usual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 2


scale = Scale.apply


class Positive(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()


def parametrized() -> list[Tensor]:
    net = mlp()
    parametrize.register_parametrization(net[0], "weight", Positive())
    return fit(net)


def double_backward() -> list[Tensor]:
    def loss(m: nn.Module, step: int) -> Tensor:
        with torch.enable_grad():
            x = batch().requires_grad_()
            slope = torch.autograd.grad(m(x).sum(), x, create_graph=True)[0]
        return m(x).square().mean() + slope.square().sum()

    return fit(mlp(nn.Tanh()), loss)


def halve(parameter: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.mul_(0.5)


def hooked() -> list[Tensor]:
    net = mlp()
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    net[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    net[2].register_full_backward_hook(lambda module, gin, gout: tuple(g if g is None else g * 0.5 for g in gin))
    net[2].weight.register_post_accumulate_grad_hook(halve)
    return fit(net)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still there
        part: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(5, 5)))
    return part


def compiled(how: str) -> Train:
    def train() -> list[Tensor]:
        torch._dynamo.reset()
        net: Any = mlp()
        if how == "part":
            net[0] = torch.compile(net[0], backend="eager")
        elif how == "method":
            net = Work(shared)
            net.compile(backend="eager")
        elif how == "function":
            step = torch.compile(lambda m, x: m(x).square().mean(), backend="eager")
            return fit(net, lambda m, number: step(m, batch()))
        elif how == "later":
            plain = fit(net, steps=3)
            return plain + fit(torch.compile(net, backend="eager"), steps=7)
        else:
            net = torch.compile(net, backend="eager")
        return fit(net)

    return train


def complex_weights() -> list[Tensor]:
    net = nn.Linear(5, 3, dtype=torch.complex64)
    return fit(net, lambda m, step: m(torch.complex(batch(), batch())).abs().square().mean())


def sparse_gradients() -> list[Tensor]:
    net = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3))

    def loss(m: nn.Module, step: int) -> Tensor:
        out: Tensor = m(torch.randint(0, 50, (4, 3)))
        return out.square().mean()

    return fit(net, loss, lambda p: torch.optim.SGD(p, 0.1))


def quantised() -> list[Tensor]:
    def work(m: Work, x: Tensor) -> Any:
        h = m.one(x)
        seen = torch.quantize_per_tensor(h.detach(), 0.1, 0, torch.qint8)
        return m.two(torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127)) + 0 * seen.dequantize().sum()

    return fit(Work(work))


def on_meta() -> list[Tensor]:
    with torch.device("meta"):
        big = nn.Sequential(nn.Linear(100_000, 10_000), nn.ReLU(), nn.Linear(10_000, 10))
    optimizer = torch.optim.SGD(big.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        big(torch.empty(8, 100_000, device="meta")).sum().backward()
        optimizer.step()
    return fit(mlp())


def replaced() -> list[Tensor]:
    """Layers exchanged, pruned, frozen and freed in the middle of the training."""
    net = mlp()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    states = fit(net, make=lambda p: torch.optim.SGD(p, 0.1), steps=4)
    for parameter in net[0].parameters():
        parameter.requires_grad_(True)
    net[2] = nn.Linear(8, 6)
    states += fit(net, steps=3)
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    del net[1]
    net.append(nn.Linear(6, 2))
    return states + fit(net, steps=3)


def failing() -> list[Tensor]:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = mlp(nn.Dropout(0.3)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            h: Tensor = self.net(x)
            if self.calls % 3 == 0:
                raise ValueError("in the middle of forward")
            return h

    def loss(m: Any, step: int) -> Tensor:
        try:
            out: Tensor = m(batch())
        except ValueError:
            out = m(batch())
        return out.square().mean()

    return fit(Fragile(), loss)


def replicas() -> list[Tensor]:
    """What DataParallel does with several devices: the forward passes run in threads, backward in the main one."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = mlp()

        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                parts = list(pool.map(self.module, x.chunk(2)))
            return torch.cat(parts)

    return fit(Parallel())


def in_a_thread() -> list[Tensor]:
    found: list[list[Tensor]] = []
    thread = threading.Thread(target=lambda: found.append(fit(mlp())))
    thread.start()
    thread.join()
    return found[0]


def moved_by_hand() -> list[Tensor]:
    """Gradients that are asked for, of weights that no optimizer knows."""
    net = mlp()
    for _ in range(STEPS):
        weights = list(net.parameters())
        gradients = torch.autograd.grad(net(batch()).square().mean(), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.1 * gradient
    return state_of(net)


def swapped(m: Work, x: Tensor) -> Any:
    """A module that is copied, run, and thrown away in every forward."""
    return m.two(copy.deepcopy(m.one)(x) + m.one(x))


def measured(recording: Recording, name: str) -> bool:
    """Whether a layer was measured forward and backward, on several steps."""
    layer = next((layer for layer in recording.layers if layer.name in (name, f"model.{name}")), None)
    if layer is None:
        return False
    ways = [recording.of_layer(layer, Stat.RMS, role) for role in (Role.OUTPUT, Role.OUTPUT_GRADIENT)]
    return all(way is not None and len(way.steps) >= 3 for way in ways)


_BOTH = ("one", "two")
_MLP = ("0", "1", "2")
HAZARDS = [
    Hazard("in-place activation", lambda: fit(nn.Sequential(nn.Linear(5, 8), nn.ReLU(True), nn.Linear(8, 3))), _MLP),
    Hazard("in-place residual add", model(add_in_place), _BOTH),
    Hazard("output overwritten in place", model(overwritten), _BOTH),
    Hazard("module called twice", model(shared), ("one", "one [call 2]", "two")),
    Hazard("the same module in many places", lambda: fit(nn.Sequential(*[nn.Linear(5, 5)] * 4)), ("0", "0 [call 4]")),
    Hazard("inputs that need no grad", lambda: fit(mlp()), _MLP),
    Hazard("inputs that are no floats", sparse_gradients, ("0", "2")),
    Hazard("a dictionary as output", output(lambda t: {"a": t, "b": None}, lambda o: o["a"]), _BOTH),
    Hazard("a list as output", output(lambda t: [t, [t * 2]], lambda o: o[1][0]), _BOTH),
    Hazard("an object as output", output(Pair, lambda o: o.value), _BOTH),
    Hazard("None as output", none_inside, _BOTH),
    Hazard("forward called directly", model(through_forward)),
    Hazard("functional model", functional),
    Hazard("functional call of a module", stateless),
    Hazard("checkpointing, reentrant", checkpointed(True), ("two",)),
    Hazard("checkpointing, not reentrant", checkpointed(False), _BOTH),
    Hazard("DataParallel", lambda: fit(nn.DataParallel(mlp())), layers=("module.0", "module.2")),
    Hazard("replicas in threads", replicas, blind="thread"),
    Hazard("lazy modules", lambda: fit(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))), _MLP),
    Hazard(
        "nested modules", lambda: fit(nn.Sequential(mlp(), nn.Sequential(nn.Sequential(nn.Linear(3, 3))))), ("0.0",)
    ),
    Hazard("parametrization", parametrized, ("1", "2")),
    Hazard("spectral norm", model(lambda m, x: m.two(m.inner(x)), lambda: nn.utils.spectral_norm(nn.Linear(5, 5)))),
    Hazard(
        "weight norm",
        model(lambda m, x: m.two(m.inner(x)), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))),
    ),
    Hazard("torch.func.grad", transformed, blind="torch.func", steps=0),
    Hazard("torch.func.vmap", model(mapped), blind="torch.func"),
    Hazard("torch.autograd.grad, and weights moved by hand", moved_by_hand, _MLP),
    Hazard("double backward", double_backward, ("0", "3")),
    Hazard("custom function", model(lambda m, x: m.two(Scale.apply(m.one(x)))), _BOTH),
    Hazard("custom function under another name", model(lambda m, x: scale(m.two(scale(m.one(x))))), _BOTH),
    Hazard("hooks of the user's that return values", hooked, ("0", "2")),
    Hazard(
        "scripted part",
        model(lambda m, x: m.two(m.inner(m.one(x))), scripted),
        _BOTH,
        blind="TorchScript",
    ),
    Hazard("torch.compile", compiled("whole"), blind="compiled"),
    Hazard("torch.compile of a part", compiled("part"), ("2",), blind="compiled"),
    Hazard("torch.compile in place", compiled("method"), blind="compiled"),
    Hazard("torch.compile of a function", compiled("function"), blind="compiled"),
    Hazard("torch.compile in the middle of the training", compiled("later"), blind="compiled"),
    Hazard("complex numbers", complex_weights),
    Hazard("quantised numbers", quantised, _BOTH),
    Hazard("empty tensors", model(lambda m, x: m.two(m.one(x[:0])).sum() + m.two(m.one(x)).mean()), ("two [call 2]",)),
    Hazard("tensors without dimensions", model(lambda m, x: torch.tanh(m.two(m.one(x)).mean())), _BOTH),
    Hazard("a model on the meta device", on_meta, blind="meta device"),
    Hazard("layers replaced, pruned, frozen", replaced),
    Hazard("exceptions in the middle", failing, ("net.0",)),
    Hazard("training in another thread", in_a_thread, blind="thread", steps=0),
    Hazard("copies of modules", model(swapped), _BOTH),
]
