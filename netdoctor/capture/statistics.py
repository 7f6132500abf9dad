"""Tensor → numbers, one small function per statistic.

Every function returns 0-dim or 1-dim tensors on the device of its input, without waiting for it: the recorder reads all numbers
of a step back at once. Half-precision inputs are reduced in float32, so that a sum cannot overflow before it is looked at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from netdoctor.recording import Stat

MAX_UNITS = 4096  # per-unit vectors are kept for the first 4096 units of a layer: more adds bytes, not knowledge
_SAMPLES, _FEATURES = 64, 4096  # what the spread over the batch is estimated from
_SAMPLED = 1024  # strided entries from which the size of an update is estimated

# sigmoid beyond inputs of ±4, where its slope is under 0.018 (advice A10); tanh where its slope is under 0.002
_SATURATION = {
    "sigmoid": (0.018, 0.982),
    "tanh": (-0.999, 0.999),
    "hardsigmoid": (1e-6, 1 - 1e-6),
    "hardtanh": (-1.0, 1.0),
}


def floats(tensor: Tensor) -> Tensor | None:
    """The tensor as a flat float32/64 view of its values, or None where there is nothing to measure."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.numel() == 0 or tensor.is_meta:
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach())
    if not tensor.is_floating_point():
        return None
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def moments(values: Tensor, wanted: frozenset[Stat]) -> dict[Stat, Tensor]:
    """MEAN, STD, RMS, ABSMAX, NONFINITE and ZERO_SHARE of a float tensor, from one pass each over sum, square and extremes."""
    flat = values.reshape(-1)
    count = flat.numel()
    low, high = torch.aminmax(flat)
    total = flat.sum()
    # Squares of values beyond 1e19 overflow float32: scaling by the largest keeps the root mean square exact to rounding.
    largest = torch.maximum(low.abs(), high.abs())
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = flat / scale
    rms = scale * torch.sqrt(torch.dot(scaled, scaled) / count)
    mean = total / count
    found = {
        Stat.MEAN: mean,
        Stat.RMS: rms,
        Stat.ABSMAX: largest,
        Stat.STD: torch.sqrt(torch.clamp(rms - mean.abs(), min=0) * (rms + mean.abs())),
    }
    if Stat.NONFINITE in wanted:
        found[Stat.NONFINITE] = (~torch.isfinite(largest)).to(flat.dtype)
    if Stat.ZERO_SHARE in wanted:
        found[Stat.ZERO_SHARE] = 1 - flat.sign().abs().sum() / count
    return {stat: value for stat, value in found.items() if stat in wanted}


def batch_spread(values: Tensor) -> Tensor | None:
    """Root mean square over entries of each entry's standard deviation over the batch (dimension 0), from at most 64 samples."""
    if values.dim() < 2 or values.shape[0] < 2:
        return None
    rows = values[:_SAMPLES].reshape(min(values.shape[0], _SAMPLES), -1)
    stride = max(1, math.ceil(rows.shape[1] / _FEATURES))
    return rows[:, ::stride].var(0, unbiased=False).mean().sqrt()


def per_unit(values: Tensor, unit_dim: int) -> Tensor:
    """The values as (units, everything else), at most `MAX_UNITS` rows."""
    return values.movedim(unit_dim, 0).reshape(values.shape[unit_dim], -1)[:MAX_UNITS]


def units_active(values: Tensor, unit_dim: int) -> Tensor:
    """1 for each unit that is not exactly zero for every sample and position. Shape (units,)."""
    low, high = torch.aminmax(per_unit(values, unit_dim), dim=1)
    return ((low != 0) | (high != 0)).to(values.dtype)


def saturated(values: Tensor, kind: str, unit_dim: int) -> tuple[Tensor, Tensor] | None:
    """Share of saturated values, over all and per unit, for a bounded activation; None for any other."""
    if kind == "softmax":
        peak = values.amax(dim=unit_dim)
        share = (peak > 0.999).to(values.dtype).mean()
        return share, share.reshape(1)
    limits = _SATURATION.get(kind)
    if limits is None:
        return None
    by_unit = per_unit(values, unit_dim)
    if kind == "tanh":
        outside = (by_unit.abs() > limits[1]).to(values.dtype)
    elif kind == "hardtanh":
        outside = ((by_unit <= limits[0]) | (by_unit >= limits[1])).to(values.dtype)
    else:
        outside = ((by_unit < limits[0]) | (by_unit > limits[1])).to(values.dtype)
    return outside.mean(), outside.mean(1)


def rows_without_gradient(gradient: Tensor) -> Tensor:
    """1 for each row (unit) of a weight's gradient that is exactly zero. Shape (units,)."""
    rows = gradient.reshape(gradient.shape[0], -1)[:MAX_UNITS]
    return (rows.abs().amax(1) == 0).to(gradient.dtype)


def distinct_rows(weight: Tensor) -> Tensor:
    """Share of rows that differ from every other row, as distinct sums of randomly weighted entries. 1/units: all alike.

    Two different rows get the same weighted sum only by a coincidence of rounding. The weights are fixed: no random state is used.
    """
    rows = weight.reshape(weight.shape[0], -1)[:MAX_UNITS].double()
    probe = (
        torch.frac(torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float64) * 0.6180339887498949)
        + 0.5
    )
    sums = (rows * probe).sum(1).sort().values
    scale = sums.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    gaps = (sums[1:] - sums[:-1]) > 1e-9 * scale
    return (gaps.sum() + 1).to(torch.float64) / rows.shape[0]


def strided_sample(parameter: Tensor) -> Tensor:
    """About 1024 strided entries of a parameter, copied: what the size of an update is measured on."""
    flat = parameter.detach().reshape(-1)
    stride = max(1, flat.numel() // _SAMPLED)
    return flat[::stride].to(torch.float32, copy=True)
