"""Tensor → numbers, one small function per statistic.

Every function returns 0-dim or 1-dim tensors on the device of its input, without waiting for it: the recorder reads all numbers
of a step back at once. Half-precision inputs are reduced in float32, so that a sum cannot overflow before it is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return None
    if torch.nn.parameter.is_lazy(tensor) or tensor.numel() == 0:
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach().resolve_conj())
    if not tensor.is_floating_point():
        return None
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """Sum, sum of squares divided by `scale`², lowest and highest value of `count` values; NaN wherever one of them is NaN."""

    count: int
    total: float
    squares: float
    low: float
    high: float
    scale: float = 1.0

    def stats(self) -> dict[Stat, float]:
        """MEAN, RMS, STD, ABSMAX and NONFINITE (1 where any value is NaN or Inf)."""
        largest = max(abs(self.low), abs(self.high)) if self.low == self.low else math.nan
        mean = self.total / self.count
        rms = self.scale * math.sqrt(self.squares / self.count) if self.squares >= 0 else math.nan
        spread = math.sqrt(max(rms - abs(mean), 0.0)) * math.sqrt(rms + abs(mean)) if math.isfinite(rms) else math.nan
        finite = math.isfinite(largest)
        return {
            Stat.MEAN: mean,
            Stat.RMS: rms,
            Stat.STD: spread,
            Stat.ABSMAX: largest,
            Stat.NONFINITE: 0.0 if finite else 1.0,
        }


_SQUARES_OVERFLOW = 1e17  # float32 squares of this, summed a thousand times, come near its largest value of 3e38
_SQUARES_VANISH = 1e-15  # and squares of this come near its smallest; what is far below the largest value may vanish


def raw_moments(values: Tensor) -> Tensor:
    """(sum, sum of squares, lowest, highest, scale) of a float tensor as a tensor of shape (5,), on its device.

    Three kernels (sum, dot, aminmax: the cheapest ones). Only where the squares would overflow
    or vanish are the values scaled first; on a device that works asynchronously that cannot be asked without waiting, so it is
    always done.
    """
    flat = values.reshape(-1)
    low, high = torch.aminmax(flat)
    scale = torch.ones_like(low)
    if values.device.type != "cpu" or not _SQUARES_VANISH < max(-float(low), float(high)) < _SQUARES_OVERFLOW:
        largest = torch.maximum(low.abs(), high.abs())
        scale = torch.where(torch.isfinite(largest) & (largest > 0), largest, scale)
        flat = flat / scale
        return torch.stack([flat.sum() * scale, torch.dot(flat, flat), low, high, scale])
    return torch.stack([flat.sum(), torch.dot(flat, flat), low, high, scale])


def moments(values: Tensor) -> Moments:
    """The moments of a float tensor, read back at once."""
    return Moments(values.numel(), *raw_moments(values).tolist())


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
    low, high = torch.aminmax(gradient.reshape(gradient.shape[0], -1)[:MAX_UNITS], dim=1)
    return ((low == 0) & (high == 0)).to(gradient.dtype)


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
    while (
        math.gcd(stride, math.prod(parameter.shape[1:])) > 1
    ):  # else a few columns are seen, say an image's empty border
        stride += 1
    return flat[::stride].to(torch.float32, copy=True)
