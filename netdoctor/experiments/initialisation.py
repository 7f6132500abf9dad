"""Re-initialisation of a copy's weights for their fan and for the activation that follows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# torch.nn.init.calculate_gain; He et al. 2015 for the ReLU family, LeCun 1998 and Glorot 2010 for the others.
_GAINS: dict[type[nn.Module], float] = {
    nn.Tanh: 5 / 3,
    nn.Hardtanh: 5 / 3,
    nn.Sigmoid: 1.0,
    nn.Hardsigmoid: 1.0,
    nn.Softmax: 1.0,
    nn.LogSoftmax: 1.0,
    nn.SELU: 3 / 4,
}
_RELUS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.Softplus)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHT_LAYERS = (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)
_SEED = 0


def match_initialisation(module: nn.Module) -> list[str]:
    """Re-initialise the weight layers of a copy in place; returns the names of the parameters that were set.

    Dense and convolution weights get a normal distribution with standard deviation gain / sqrt(fan_in) (He et al.
    2015), with the gain of the activation that follows in the order of registration: sqrt(2) where none is registered
    (a functional one is likely a ReLU), 1 for the last layer. Recurrent weights become orthogonal per gate (Saxe et
    al. 2014), attention's projections Xavier-uniform. Biases become 0. Weights that start at zero (residual ends,
    LoRA's B) stay, unless most do; norms, embeddings and weights tied to them, and parametrised or frozen weights
    stay. Draws from a generator of its own.
    """
    embeddings = [child for child in module.modules() if isinstance(child, nn.Embedding | nn.EmbeddingBag)]
    kept = {id(p) for child in embeddings for p in child.parameters()} | _zeros_on_purpose(module)
    done: list[str] = []
    layers = list(module.named_modules())
    last = next((child for _, child in reversed(layers) if isinstance(child, WEIGHT_LAYERS)), None)
    with torch.no_grad():
        for position, (path, child) in enumerate(layers):
            generator = torch.Generator().manual_seed(_SEED + position)
            for name in _initialise(child, _gain(layers, position, child is last), generator, kept):
                done.append(f"{path}.{name}" if path else name)
    return done


def _zeros_on_purpose(module: nn.Module) -> set[int]:
    """The weights that are all zero, where fewer than half are: a design then, not a fault."""
    weights = [p for child in module.modules() if isinstance(child, WEIGHT_LAYERS) for p in child._parameters.values()]
    weights = [p for p in weights if p is not None and p.dim() > 1]
    zeros = {id(p) for p in weights if p is not None and not bool(p.any())}
    return zeros if 2 * len(zeros) < len(weights) else set()


def _initialise(child: nn.Module, gain: float, generator: torch.Generator, kept: set[int]) -> Iterator[str]:
    """Set one module's own weights; yields the names of the parameters that were set."""
    for name, parameter in list(child._parameters.items()):
        if parameter is None or not parameter.requires_grad or id(parameter) in kept:
            continue
        if isinstance(child, WEIGHT_LAYERS):
            fresh = _normal(child, parameter, gain, generator) if parameter.dim() > 1 else torch.zeros_like(parameter)
        elif isinstance(child, nn.RNNBase | nn.RNNCellBase):
            fresh = _recurrent(child, name, parameter, generator)
        elif isinstance(child, nn.MultiheadAttention):
            fresh = _xavier(parameter, generator) if parameter.dim() > 1 else torch.zeros_like(parameter)
        else:
            continue
        if parameter.dim() > 1 or name.startswith("bias") or name.endswith("bias"):
            parameter.copy_(fresh)
            kept.add(id(parameter))  # shared by several modules: once is enough
            yield name


def _normal(child: nn.Module, weight: Tensor, gain: float, generator: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=generator).mul_(gain / math.sqrt(max(1, fan_in(child, weight))))


def fan_in(child: nn.Module, weight: Tensor) -> int:
    """The inputs of one unit; a transposed convolution sums over its first dimension, spread over its strides."""
    field = math.prod(weight.shape[2:])
    if isinstance(child, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return max(1, int(weight.shape[0] // child.groups * field / math.prod(child.stride)))
    return int(weight.shape[1]) * field


def _xavier(weight: Tensor, generator: torch.Generator) -> Tensor:
    bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
    return torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)


def _recurrent(child: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    gates = 4 if isinstance(child, nn.LSTM | nn.LSTMCell) else 3 if isinstance(child, nn.GRU | nn.GRUCell) else 1
    if parameter.dim() < 2:
        return torch.zeros(parameter.shape)
    blocks = torch.empty(parameter.shape).chunk(gates)
    if name.startswith("weight_hh"):
        return torch.cat([_orthogonal(block, generator) for block in blocks])
    return torch.cat([_xavier(block, generator) for block in blocks])


def _orthogonal(block: Tensor, generator: torch.Generator) -> Tensor:
    fresh = torch.empty(block.shape)
    return nn.init.orthogonal_(fresh, generator=generator)


def _gain(layers: list[tuple[str, nn.Module]], position: int, is_last: bool) -> float:
    """The gain of the activation registered after a layer and before the next weight layer."""
    for _, child in layers[position + 1 :]:
        if type(child) in _GAINS:
            return _GAINS[type(child)]
        if isinstance(child, _RELUS):
            return math.sqrt(2)
        if isinstance(child, WEIGHT_LAYERS):
            break
    return 1.0 if is_last else math.sqrt(2)
