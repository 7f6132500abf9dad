"""Tensor → numbers, one small function per statistic.

Every function returns 0-dim or 1-dim tensors on the device of its input, without waiting for it: the recorder reads all numbers
of a step back at once. Half-precision inputs are reduced in float32, so that a sum cannot overflow before it is looked at.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.recording import Stat

MAX_UNITS = 4096  # per-unit vectors are kept for the first 4096 units of a layer: more adds bytes, not knowledge
SAMPLES, FEATURES = 64, 1024  # what the spread over the batch is estimated from
_SAMPLED = 1024  # strided entries from which the size of an update is estimated
_PROBED = 64  # strided entries of a row that tell it apart from others nearly always

# sigmoid beyond inputs of ±4, where its slope is under 0.018 (advice A10); tanh where its slope is under 0.002
_SATURATION = {
    "sigmoid": (0.018, 0.982),
    "tanh": (-0.999, 0.999),
    "hardsigmoid": (1e-6, 1 - 1e-6),
    "hardtanh": (-1.0, 1.0),
}


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor. Any arithmetic on the whole would make the processes talk."""
    return type(tensor).__name__ == "DTensor"


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that lies in this process; any other tensor as it is."""
    part: Any = tensor
    return part._local_tensor if is_shard(tensor) else tensor


_USUAL = (Tensor, torch.nn.Parameter)


def floats(tensor: Tensor) -> Tensor | None:
    """The tensor as a flat float32/64 view of its values (of a sharded one, of the part that lies here), or None where there is
    nothing to measure."""
    tensor = local(tensor)
    if tensor.dtype is torch.float32 and type(tensor) in _USUAL and tensor.layout is torch.strided and tensor.numel():
        return None if tensor.is_meta or tensor.is_nested else tensor.detach()
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


class Moments(NamedTuple):
    """Sum, sum of squares divided by `scale`², lowest and highest value of `size` values; NaN wherever one of them is NaN.

    `known` tells how much was measured: 3 all of it, 2 no extremes, 1 the squares only.
    """

    size: int
    total: float
    squares: float
    low: float
    high: float
    scale: float = 1.0
    known: int = 3

    def stats(self) -> dict[Stat, float]:
        """MEAN, RMS, STD, ABSMAX and NONFINITE (1 where any value is NaN or Inf), as far as they were measured."""
        if self.known < 3:
            rms = self.scale * math.sqrt(self.squares / self.size)
            if self.known == 1:
                return {Stat.RMS: rms, Stat.NONFINITE: 0.0}
            mean = self.total / self.size
            spread = math.sqrt(max(rms - abs(mean), 0.0)) * math.sqrt(rms + abs(mean))
            return {Stat.MEAN: mean, Stat.RMS: rms, Stat.STD: spread, Stat.NONFINITE: 0.0}
        largest = max(abs(self.low), abs(self.high)) if self.low == self.low else math.nan
        mean = self.total / self.size
        rms = self.scale * math.sqrt(self.squares / self.size) if self.squares >= 0 else math.nan
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
NORMAL_SQUARES = (1e-24, 1e34)  # sums of squares that neither vanished nor overflowed in float32
RAISED = 2.0**64  # values are multiplied by this, exactly, where their squares vanish
_SQUARES_VANISH = 1e-15  # and squares of this come near its smallest; what is far below the largest value may vanish


def quick_moments(values: Tensor) -> tuple[float, float, float, float, float]:
    """(sum, sum of squares, lowest, highest, scale) of a float tensor on the CPU, where reading back waits for nothing.

    Three kernels (aminmax, sum, dot: the cheapest ones). Only where the squares would overflow or vanish are the values scaled
    first; then the sum of squares is that of values / scale.
    """
    flat = values.reshape(-1)
    ends = torch.aminmax(flat)
    low, high = ends.min.item(), ends.max.item()
    largest = max(-low, high)
    if _SQUARES_VANISH < largest < _SQUARES_OVERFLOW or not 0 < largest < math.inf:
        return flat.sum().item(), torch.dot(flat, flat).item(), low, high, 1.0
    flat = flat / largest
    return flat.sum().item() * largest, torch.dot(flat, flat).item(), low, high, largest


def brief_moments(values: Tensor, mean: bool) -> Moments:
    """The moments of a float tensor on the CPU without its extremes, and without its sum unless `mean`: one kernel for each.

    Where the squares are neither overflowing nor vanishing nothing else could be wrong; else everything is measured.
    """
    flat = values.reshape(-1)
    squares = torch.dot(flat, flat).item()
    if not NORMAL_SQUARES[0] < squares < NORMAL_SQUARES[1]:
        squares = torch.linalg.vector_norm(flat, dtype=torch.float64).item() ** 2
        if not math.isfinite(squares):
            return Moments(flat.numel(), *quick_moments(flat))
    return Moments(flat.numel(), flat.sum().item() if mean else 0.0, squares, 0.0, 0.0, 1.0, 2 if mean else 1)


class Batch(NamedTuple):
    """What two kernels tell of a batch of outputs: moments without extremes, each entry's sum over the batch (the shape of one
    sample), and the root mean square over entries of each entry's standard deviation over the batch."""

    moments: Moments
    sums: Tensor
    spread: float


CANCELS = (
    1e-2  # of the squares: a smaller variance over the batch would come out of float32 sums with less than four digits
)


def brief_batch(values: Tensor) -> Batch | None:
    """The same from a float32 tensor on the CPU with at least two samples along dimension 0. None where its squares vanish or
    overflow, or where its samples are so alike that their spread would be lost in rounding."""
    samples, flat = values.shape[0], values.reshape(-1)
    squares = torch.dot(flat, flat).item()
    if not NORMAL_SQUARES[0] < squares < NORMAL_SQUARES[1]:
        return None
    sums = values.sum(0)
    flat = sums.reshape(-1)
    apart = squares - torch.dot(flat, flat).item() / samples
    if not apart > CANCELS * squares:
        return None
    moments = Moments(values.numel(), flat.sum().item(), squares, 0.0, 0.0, 1.0, 2)
    return Batch(moments, sums, math.sqrt(apart / values.numel()))


def raw_moments(values: Tensor) -> Tensor:
    """The same as a tensor of shape (5,) on the device of `values`, without waiting for it: it is always scaled."""
    flat = values.reshape(-1)
    low, high = torch.aminmax(flat)
    largest = torch.maximum(low.abs(), high.abs())
    scale = torch.where(torch.isfinite(largest) & (largest > 0), largest, torch.ones_like(low))
    flat = flat / scale
    return torch.stack([flat.sum() * scale, torch.dot(flat, flat), low, high, scale])


def moments(values: Tensor) -> Moments:
    """The moments of a float tensor, read back at once."""
    row = quick_moments(values) if values.device.type == "cpu" else raw_moments(values).tolist()
    return Moments(values.numel(), *row)


def batch_spread(values: Tensor) -> Tensor | float | None:
    """Root mean square over entries of each entry's standard deviation over the batch (dimension 0), from at most 64 samples."""
    if values.dim() < 2 or values.shape[0] < 2:
        return None
    rows = values[:SAMPLES].reshape(min(values.shape[0], SAMPLES), -1)
    stride = max(1, math.ceil(rows.shape[1] / FEATURES))
    # From the first sample, not from the mean: exact where all samples are alike. `var` along dimension 0 costs 20 times as much.
    apart = (rows[:, ::stride] if stride > 1 else rows) - rows[:1, ::stride]
    total, flat = apart.sum(0), apart.reshape(-1)
    squares = torch.dot(flat, flat), torch.dot(total, total)
    if values.device.type == "cpu":
        found = squares[0].item() / len(rows) - squares[1].item() / len(rows) ** 2
        return math.sqrt(max(0.0, found) / len(total)) if found == found else math.nan
    return ((squares[0] / len(rows) - squares[1] / len(rows) ** 2) / len(total)).clamp_min(0.0).sqrt()


def per_unit(values: Tensor, unit_dim: int) -> Tensor:
    """The values as (units, everything else), at most `MAX_UNITS` rows."""
    return values.movedim(unit_dim, 0).reshape(values.shape[unit_dim], -1)[:MAX_UNITS]


def sums_active(sums: NDArray[np.float32], unit_dim: int) -> NDArray[np.float64]:
    """The same of many outputs of one shape, from the sums over the batch of values none of which is negative: they are zero where
    all of them are.

    `sums` has shape (outputs, *one sample), so `unit_dim`, which is that of the values and not 0, is its own, too. Shape
    (outputs, units).
    """
    others = tuple(dim for dim in range(1, sums.ndim) if dim != unit_dim % sums.ndim)
    active: NDArray[np.float64] = ((sums.max(axis=others) if others else sums)[:, :MAX_UNITS] != 0).astype(np.float64)
    return active


def units_active(values: Tensor, unit_dim: int, rectified: bool = False) -> Tensor:
    """1 for each unit that is not exactly zero for every sample and position. Shape (units,). `rectified`: none is negative."""
    dims = [dim for dim in range(values.dim()) if dim != unit_dim % values.dim()]
    if not dims:
        return (values != 0).to(values.dtype)[:MAX_UNITS]
    # `amax` and `amin` over the batch cost a tenth of `aminmax`, which takes one dimension only.
    active = values.amax(dims) != 0
    if not rectified:
        active |= values.amin(dims) != 0
    return active.to(values.dtype)[:MAX_UNITS]


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
    """1 for each row (unit) of a weight's gradient that is exactly zero. Shape (units,), at most `MAX_UNITS`."""
    return (gradient.reshape(gradient.shape[0], -1)[:MAX_UNITS].abs().amax(1) == 0).to(gradient.dtype)


def distinct_rows(weight: Tensor) -> Tensor:
    """Share of rows that differ from every other row, as distinct sums of randomly weighted entries. 1/units: all alike.

    Two different rows get the same weighted sum only by a coincidence of rounding. The weights are fixed: no random state is used.
    """
    rows = weight.reshape(weight.shape[0], -1)[:MAX_UNITS]
    stride = max(1, rows.shape[1] // _PROBED)
    if stride > 1:  # only rows that do not differ in a few of their entries are asked in full
        share = _distinct(rows[:, ::stride])
        if share.item() == 1.0:
            return share
    return _distinct(rows)


def _distinct(rows: Tensor) -> Tensor:
    rows = rows.double()
    probe = (
        torch.frac(torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float64) * 0.6180339887498949)
        + 0.5
    )
    sums = (rows * probe).sum(1).sort().values
    scale = sums.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    gaps = (sums[1:] - sums[:-1]) > 1e-9 * scale
    return (gaps.sum() + 1).to(torch.float64) / rows.shape[0]


def sample_stride(parameter: Tensor, sampled: int = _SAMPLED) -> int:
    """The stride that leaves about `sampled` entries of a parameter and meets each of its columns."""
    stride = max(1, parameter.numel() // sampled)
    while (
        math.gcd(stride, math.prod(parameter.shape[1:])) > 1
    ):  # else a few columns are seen, say an image's empty border
        stride += 1
    return stride


def strided(parameter: Tensor, stride: int) -> Tensor:
    """Every `stride`-th entry of a parameter; a view, where its memory allows."""
    values = local(parameter).detach()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return values.reshape(-1)[::stride]
