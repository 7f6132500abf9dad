"""Random small trainings: an architecture out of all kinds of layers, an optimizer, a fault or two. A seed gives one of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 5
Shape = tuple[int, ...]


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, work: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor) -> Any:
        return self.work(x)


class Residual(nn.Module):
    """x + f(x), in place or not."""

    def __init__(self, inner: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = inner, in_place

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.inner(x)
        if self.in_place:
            h += x
            return h
        return h + x


class First(nn.Module):
    """The first of a recurrent layer's results."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)[0]
        return found


class Attention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x, x, x)[0]
        return found


ACTIVATIONS: list[Callable[[], nn.Module]] = [
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus),
    *(
        nn.Hardtanh,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Softsign,
        nn.PReLU,
        nn.RReLU,
        nn.LogSigmoid,
        nn.Tanhshrink,
        nn.ReLU6,
    ),
    lambda: nn.ReLU(inplace=True),
    lambda: nn.Softmax(-1),
    lambda: Function(torch.relu),
    lambda: Function(lambda x: F.dropout(x, 0.2)),
    lambda: Function(lambda x: x * torch.sigmoid(x)),
    lambda: Function(lambda x: torch.where(x > 0, x, 0.1 * x)),
    lambda: nn.Dropout(0.3),
    nn.Identity,
]


def vector_layer(draw: random.Random, width: int) -> tuple[nn.Module, int]:
    """A layer for (batch, width), and the width that comes out."""
    out = draw.choice([4, 6, 8])
    return draw.choice(
        [
            lambda: (nn.Linear(width, out, bias=draw.random() < 0.8), out),
            lambda: (nn.BatchNorm1d(width), width),
            lambda: (nn.LayerNorm(width), width),
            lambda: (nn.GroupNorm(2, width), width),
            lambda: (nn.RMSNorm(width), width),
            lambda: (Residual(nn.Linear(width, width), draw.random() < 0.5), width),
            lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(width, out)), out),
            lambda: (nn.utils.parametrizations.spectral_norm(nn.Linear(width, out)), out),
            lambda: (nn.LazyLinear(out), out),
            lambda: (nn.Sequential(nn.Linear(width, out), draw.choice(ACTIVATIONS)()), out),
        ]
    )()


def sequence_layer(draw: random.Random, width: int) -> tuple[nn.Module, int]:
    """A layer for (batch, time, width)."""
    out = draw.choice([4, 6])
    return draw.choice(
        [
            lambda: (nn.Linear(width, out), out),
            lambda: (First(nn.LSTM(width, out, batch_first=True)), out),
            lambda: (First(nn.GRU(width, out, num_layers=2, dropout=0.1, batch_first=True)), out),
            lambda: (First(nn.RNN(width, out, batch_first=True)), out),
            lambda: (Attention(width), width),
            lambda: (nn.TransformerEncoderLayer(width, 2, 8, batch_first=True, norm_first=draw.random() < 0.5), width),
            lambda: (nn.LayerNorm(width), width),
        ]
    )()


def image_layer(draw: random.Random, width: int) -> tuple[nn.Module, int]:
    """A layer for (batch, channels, 6, 6)."""
    out = draw.choice([4, 6])
    return draw.choice(
        [
            lambda: (nn.Conv2d(width, out, 3, padding=1), out),
            lambda: (nn.ConvTranspose2d(width, out, 3, padding=1), out),
            lambda: (nn.Conv2d(width, width, 3, padding=1, groups=2), width),
            lambda: (nn.BatchNorm2d(width), width),
            lambda: (nn.InstanceNorm2d(width, affine=True), width),
            lambda: (nn.MaxPool2d(3, 1, 1), width),
            lambda: (nn.LocalResponseNorm(2), width),
            lambda: (nn.Dropout2d(0.2), width),
            lambda: (Residual(nn.Conv2d(width, width, 1), draw.random() < 0.5), width),
        ]
    )()


DOMAINS: dict[str, tuple[Shape, Callable[[random.Random, int], tuple[nn.Module, int]]]] = {
    "vector": ((4,), vector_layer),
    "sequence": ((5, 4), sequence_layer),
    "image": ((4, 6, 6), image_layer),
    "tokens": ((5,), sequence_layer),
}
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross entropy": lambda out: F.cross_entropy(out, torch.randint(0, 3, (len(out),))),
    "nll": lambda out: F.nll_loss(out.log_softmax(-1), torch.randint(0, 3, (len(out),))),
    "mse": lambda out: F.mse_loss(out, torch.randn_like(out)),
    "broadcast": lambda out: (out.sum(1) - torch.randn(len(out), 1)).square().mean(),
    "bce": lambda out: F.binary_cross_entropy_with_logits(out, torch.rand_like(out).round()),
    "probabilities": lambda out: F.cross_entropy(out.softmax(-1), torch.randint(0, 3, (len(out),))),
    "huber": lambda out: F.huber_loss(out, torch.zeros_like(out)),
    "kl": lambda out: F.kl_div(out.log_softmax(-1), torch.softmax(torch.randn_like(out), -1), reduction="batchmean"),
    "own": lambda out: -out.sigmoid().log().sum() + 1e3 * out.square().sum(),
}
OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, 0.05),
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    lambda p: torch.optim.AdamW(p, 1e-2),
    lambda p: torch.optim.RMSprop(p, 1e-3),
    lambda p: torch.optim.Adagrad(p, 1e-2),
    lambda p: torch.optim.SGD(p, 1e4),
    lambda p: torch.optim.SGD(p, float("inf")),
]


@dataclass
class Plan:
    """A training, in words: `faults` by name."""

    seed: int
    domain: str = "vector"
    loss: str = "mse"
    faults: tuple[str, ...] = ()
    batch: int = 4
    raised: list[str] = field(default_factory=list)


FAULTS = (
    *(
        "nan input",
        "inf input",
        "empty batch",
        "no zero_grad",
        "zero_grad before step",
        "no step",
        "no backward",
        "eval",
    ),
    *("dead", "zero weights", "equal weights", "nan weight", "huge weights", "frozen", "frozen by half", "detached"),
    *(
        "raises in forward",
        "raises in backward",
        "layer replaced",
        "retained",
        "no_grad",
        "clipped",
        "one sample",
        "meta",
    ),
    *(
        "half",
        "double",
        "deep copies",
        "functional",
        "hooks",
        "in place target",
        "second model",
        "accumulated",
        "closure",
    ),
)


def drawn(seed: int) -> Plan:
    """The plan of a seed."""
    draw = random.Random(seed)
    faults = tuple(draw.sample(FAULTS, draw.choice([0, 1, 1, 2, 3])))
    return Plan(seed, draw.choice(list(DOMAINS)), draw.choice(list(LOSSES)), faults, draw.choice([2, 4, 7]))


def built(plan: Plan) -> nn.Sequential:
    """The model of a plan."""
    draw, layer = random.Random(plan.seed + 1), DOMAINS[plan.domain][1]
    width = 4
    parts: list[nn.Module] = [nn.Embedding(10, 4)] if plan.domain == "tokens" else []
    for _ in range(draw.randint(1, 5)):
        made, width = layer(draw, width)
        parts.append(made)
        if draw.random() < 0.6:
            parts.append(draw.choice(ACTIVATIONS)())
    parts.append(Function(lambda x: x.flatten(2).mean(2) if plan.domain == "image" else x))
    parts.append(Function(lambda x: x.mean(1) if x.dim() == 3 else x))
    return nn.Sequential(*parts, nn.Linear(width, 3))


def inputs(plan: Plan, step: int) -> Tensor:
    """A batch."""
    shape = DOMAINS[plan.domain][0]
    rows = 0 if "empty batch" in plan.faults and step == 2 else 1 if "one sample" in plan.faults else plan.batch
    if plan.domain == "tokens":
        return torch.randint(0, 10, (rows, *shape))
    x = torch.randn(rows, *shape)
    if rows and step == 3 and "nan input" in plan.faults:
        x.view(-1)[0] = float("nan")
    if rows and step == 1 and "inf input" in plan.faults:
        x.view(-1)[-1] = float("inf")
    return x


class Raising(torch.autograd.Function):
    """Raises in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise KeyError("in the middle of backward")
