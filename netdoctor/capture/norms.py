"""Whether weights are finite: their common norm shows a NaN or Inf in any of them, in one fused pass per device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from netdoctor.capture.statistics import gradient_norm, local

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer


def look_at_weights(observer: Observer, optimizer: Optimizer) -> None:
    """After a step, where that was asked for: tell the observer of weights that are NaN, Inf or above about 1e19."""
    if not observer.watch_weights:
        return
    held = [p for group in optimizer.param_groups for p in group["params"] if p.layout is torch.strided]
    values = [local(p.detach()) for p in held if p.is_floating_point() and not p.is_meta]
    if values and not math.isfinite(gradient_norm(values)):
        observer.trip([], "optimizer")
