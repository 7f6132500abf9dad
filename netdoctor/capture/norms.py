"""One number that shows a NaN or Inf in any of many tensors: their common norm, in one fused pass per device and one read-back."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from netdoctor.capture.statistics import local


def gradient_norm(gradients: list[Tensor]) -> float:
    """The 2-norm over all gradients, in one fused pass per device and one read-back. NaN and Inf show in it."""
    norms = list(torch._foreach_norm(gradients))
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.cpu() for norm in norms]
    return float(torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms])))


def finite_weights(optimizer: Optimizer) -> bool:
    """Whether the norm of all that an optimizer trains is finite; it is not where weights are NaN, Inf or above about 1e19."""
    held = [p for group in optimizer.param_groups for p in group["params"] if p.layout is torch.strided]
    values = [local(p.detach()) for p in held if p.is_floating_point() and not p.is_meta]
    return not values or math.isfinite(gradient_norm(values))
