"""What the model is given and what the loss compares with: samples of both on measured steps, told as numbers at the end."""

from __future__ import annotations

import linecache
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from netdoctor.capture.handed import HandedOut
from netdoctor.capture.source import variable_name
from netdoctor.capture.tree import tensors
from netdoctor.data import Array, Columns, TensorFacts

MAX_COLUMNS = 512
MAX_STEPS = 64
MAX_TENSORS = 4  # inputs, and targets
MAX_CLASSES = 1024
REPEATED = 3  # rows that share the end of a column's range
STEP_NUMBERS = 1 << 15  # that are read of one tensor in one step
ALL_NUMBERS = 1 << 18  # that are kept of one tensor: 2 MB
CLASS_LOSSES = frozenset({"cross_entropy", "nll_loss", "multi_margin_loss"})
BINARY_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
LOSSES = CLASS_LOSSES | BINARY_LOSSES | {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div"}
# What reads the data first in a model of loose weights.
PRODUCTS = frozenset({"linear", "matmul", "mm", "__matmul__", "__rmatmul__", "addmm", "conv1d", "conv2d"})
_DIFFERENCES = frozenset({"sub", "rsub", "__sub__", "__rsub__", "subtract"})


@dataclass(slots=True)
class _Kept:
    """What is kept of one tensor: a block of rows per measured step."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: str
    stride: int
    position: tuple[str, int]
    value: int | None
    blocks: list[Array] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    scales: list[tuple[float, float]] = field(default_factory=list)
    classes: list[Array] = field(default_factory=list)
    ordered: list[float] = field(default_factory=list)
    within: list[float] = field(default_factory=list)
    numbers: int = 0
    storage: StorageWeakRef | None = None  # of the first step
    anew: int = 0  # later steps in which it was a tensor of its own


class DataRecorder:
    """Samples inputs and targets. Reads no random state; copies at most `STEP_NUMBERS` numbers per tensor and step."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[int, int], _Kept] = {}
        self._targets: dict[tuple[str, tuple[str, int]], _Kept] = {}
        self.handed = HandedOut()
        self._known_loss = False  # a loss of torch's own was seen, so differences in the loop are not taken for losses

    def wants(self, name: str) -> bool:
        """Whether an operation of this name may compare a prediction with a target."""
        return name in LOSSES or (name in _DIFFERENCES and not self._known_loss)

    def see_inputs(
        self,
        step: int,
        model: int,
        arguments: Any,
        position: tuple[str, int],
        made: Callable[[Tensor], bool],
        value_of: Callable[[Tensor], int | None],
    ) -> None:
        """A model is about to run for training. `made` tells tensors that an earlier model made: those are no data."""
        given = [t for t in tensors(arguments) if not t.requires_grad and not made(t)]
        for place, tensor in enumerate(given):
            if place >= MAX_TENSORS or (self._full(self._inputs, (model, place))):
                return
            if (model, place) not in self._inputs:
                kept = _begin(tensor, variable_name(tensor), position, value_of(tensor))
                if kept is None:
                    continue
                self._inputs[model, place] = kept
            _add(self._inputs[model, place], tensor, step)

    def see_operation(
        self, step: int, name: str, args: Any, kwargs: Any, position: tuple[str, int], value: Callable[[Tensor], Any]
    ) -> None:
        """An operation runs for training: keep its target when it is a loss."""
        known = name in LOSSES
        self._known_loss |= known
        target = _target(name, args, kwargs) if known else self._subtracted(name, args)
        key = (name, position)
        if target is None or self._full(self._targets, key):
            return
        if key not in self._targets:
            kept = _begin(target, name, position, value(target))
            if kept is None:
                return
            self._targets[key] = kept
        kept = self._targets[key]
        _add(kept, target, step)
        _add_order(kept, target, step, name, kwargs)

    def see_batch(self, step: int, batch: Any, first_of: int = 0) -> None:
        """A loader has handed out a batch; of `first_of` batches where it began anew with it."""
        if not self.handed.wants(step, MAX_STEPS):
            return
        codes: dict[tuple[int, ...], list[int]] = {}
        for tensor in list(tensors(batch))[:MAX_TENSORS]:
            kept = _begin(tensor, "", ("", 0), None)
            if kept is not None:
                codes.setdefault(kept.shape, []).append(_hash(sample_rows(tensor, kept.stride)))
        self.handed.add(step, codes, first_of)

    def _subtracted(self, name: str, args: Any) -> Tensor | None:
        """The constant operand of a difference between a prediction and something of its size."""
        if self._known_loss or name not in _DIFFERENCES or len(args) < 2:
            return None
        pair = [a for a in args[:2] if isinstance(a, Tensor)]
        if len(pair) != 2 or pair[0].requires_grad == pair[1].requires_grad or pair[0].shape != pair[1].shape:
            return None
        return pair[0] if pair[1].requires_grad else pair[1]

    def _full(self, table: dict[Any, _Kept], key: Any) -> bool:
        return len(table[key].steps) >= MAX_STEPS if key in table else len(table) >= MAX_TENSORS

    def made_anew(self) -> int:
        """In how many measured steps after the first every input was a tensor of its own, not the first step's or a part of it."""
        return min((kept.anew for kept in self._inputs.values() if kept.steps), default=0)

    def inputs(self) -> list[TensorFacts]:
        """What the models were given."""
        return [_tell(kept) for kept in self._inputs.values() if kept.steps]

    def targets(self) -> list[TensorFacts]:
        """What the losses compared with."""
        differences = {"sub", "rsub"} if self._known_loss else set()
        return [_tell(k) for k in self._targets.values() if k.steps and k.name.strip("_") not in differences]


def _target(name: str, args: Any, kwargs: Any) -> Tensor | None:
    target = args[1] if len(args) > 1 else kwargs.get("target")
    return target if isinstance(target, Tensor) and not target.requires_grad else None


def _begin(tensor: Tensor, name: str, position: tuple[str, int], value: int | None) -> _Kept | None:
    sound = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    if not sound or tensor.is_complex() or tensor.dim() == 0 or tensor.numel() == 0:
        return None
    axis = "channel" if tensor.dim() >= 4 else "column"
    columns = tensor.shape[1 if axis == "channel" else -1] if tensor.dim() > 1 else 1
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _Kept(name, tuple(tensor.shape), dtype, axis, math.ceil(columns / MAX_COLUMNS), position, value)


def _hash(rows: Array) -> int:
    return zlib.crc32(rows.tobytes())


def sample_rows(tensor: Tensor, stride: int) -> Array:
    """At most `STEP_NUMBERS` numbers as (rows, columns): strided positions first, then strided samples, from all over."""
    taken = tensor.detach()
    if taken.dim() == 1:
        taken = taken[:, None]
    if taken.dim() >= 4:
        taken = taken.movedim(1, -1)
    taken = taken[..., ::stride]
    inner = range(1, taken.dim() - 1)
    while (excess := taken.numel() / STEP_NUMBERS) > 1 and any(taken.shape[dim] > 1 for dim in inner):
        for dim in inner:  # a second time where the rounding of the first left a few too many
            by = min(taken.shape[dim], math.ceil(excess ** (1 / len(inner))))
            taken = taken[(slice(None),) * dim + (slice(None, None, by),)]
    taken = taken[:: max(1, math.ceil(taken.numel() / STEP_NUMBERS))]
    rows: Array = taken.reshape(-1, taken.shape[-1]).to("cpu", torch.float64).numpy()
    return rows


def _add(kept: _Kept, tensor: Tensor, step: int) -> None:
    """One step's rows. Where the width changed on the way (padding), only the hash is kept."""
    if tensor.numel() == 0:
        return
    rows = sample_rows(tensor, kept.stride)
    code = _hash(rows)
    if not kept.steps or kept.steps[-1] != step:  # of several calls in one step the first tells batches apart
        kept.steps.append(step)
        kept.hashes.append(code)
        storage = StorageWeakRef(tensor.untyped_storage())
        kept.storage = kept.storage or storage
        kept.anew += kept.storage.expired() or kept.storage != storage
        with np.errstate(invalid="ignore", over="ignore"):  # infinities among them
            kept.scales.append((float(rows.mean()), float(rows.std())))
    fits = not kept.blocks or kept.blocks[0].shape[1] == rows.shape[1]
    if fits and kept.numbers + rows.size <= ALL_NUMBERS:
        kept.blocks.append(rows.copy())
        kept.numbers += rows.size


def _add_order(kept: _Kept, target: Tensor, step: int, loss: str, kwargs: Any) -> None:
    """Classes, order and spread of one number per sample; of several calls in one step the counts add up."""
    single = target.dim() == 1 or (target.dim() == 2 and target.shape[1] == 1)
    if not single or target.numel() > STEP_NUMBERS:
        return
    flat = target.detach().reshape(-1).to("cpu", torch.float64).numpy()
    again = len(kept.ordered) == len(kept.steps)
    if not again:
        kept.ordered.append(float(np.mean(np.diff(flat) >= 0)) if flat.size > 1 else math.nan)
        kept.within.append(float(flat.std()))
    counts = _counts(flat, loss, kwargs.get("ignore_index", -100))
    if counts is not None:
        kept.classes.append(_sum(kept.classes.pop(), counts) if again and kept.classes else counts)


def _counts(flat: Array, loss: str, ignored: Any) -> Array | None:
    if loss not in CLASS_LOSSES | BINARY_LOSSES:
        return None
    flat = flat[flat != ignored]
    if not np.isfinite(flat).all() or (flat != np.round(flat)).any() or (flat < 0).any() or (flat >= MAX_CLASSES).any():
        return None
    return np.bincount(flat.astype(np.int64), minlength=2).astype(np.float64)


def _sum(one: Array, other: Array) -> Array:
    width = max(one.size, other.size)
    return _padded(one, width) + _padded(other, width)


def _padded(counts: Array, size: int) -> Array:
    return np.pad(counts, (0, size - counts.size))


def _tell(kept: _Kept) -> TensorFacts:
    """The facts of what was kept."""
    rows = np.concatenate(kept.blocks) if kept.blocks else np.empty((0, 1))
    sampled, rows = len(rows), rows[np.isfinite(rows).all(axis=1)]
    width = max((c.size for c in kept.classes), default=0)
    every = bool(kept.classes) and len(kept.classes) == len(kept.steps)
    one_each = bool(kept.ordered) and len(kept.ordered) == len(kept.steps)
    return TensorFacts(
        kept.name,
        kept.shape,
        kept.dtype,
        np.asarray(kept.steps, np.int64),
        len(rows),
        float(rows.mean()) if rows.size else math.nan,
        float(rows.std()) if rows.size else math.nan,
        bool(rows.size) and bool((rows == np.round(rows)).all()),
        column_facts(rows, len(kept.shape) == 2),
        kept.axis,
        kept.stride,
        tuple(kept.hashes),
        np.stack([_padded(c, width) for c in kept.classes]) if every else None,
        np.asarray(kept.ordered) if one_each else None,
        np.asarray(kept.within) if one_each else None,
        kept.value,
        *kept.position,
        linecache.getline(*kept.position).strip(),
        sampled - len(rows),
        np.asarray(kept.scales),
    )


def column_facts(rows: Array, table: bool = True) -> Columns:
    """Per-column statistics of finite rows (rows, columns); NaN everywhere when there are none.

    Repeated extremes are looked for in tables, where a row is a sample.
    """
    if not rows.size:
        nothing = np.full(rows.shape[1], math.nan)
        return Columns(*[nothing] * 10)
    median = np.median(rows, axis=0)
    spread = 1.4826 * np.median(np.abs(rows - median), axis=0)
    different = _different(rows) if rows.shape[1] > 1 and table else rows[:0]
    extremes = np.array([_extreme(column) for column in different.T]).T
    zeros = np.mean(rows == 0, axis=0)
    return Columns(
        rows.mean(axis=0), rows.std(axis=0), rows.min(axis=0), rows.max(axis=0), median, spread, zeros, *extremes
    )


def _different(rows: Array) -> Array:
    """Each row once: samples come back epoch after epoch. Rows are told apart by a weighted sum, exact for equal ones."""
    weights = np.modf(np.arange(1, rows.shape[1] + 1) * 0.6180339887498949)[0] + 0.5
    return rows[np.unique((rows * weights).sum(axis=1), return_index=True)[1]]


def _extreme(column: Array) -> tuple[float, float, float]:
    """(value, share, gap in robust deviations) of the repeated end of the range that lies further from the rest."""
    best = (math.nan, 0.0, 0.0)
    for end in (column.min(), column.max()) if column.size else ():
        count = int((column == end).sum())
        rest = column[column != end]
        if count < REPEATED or rest.size < count:
            continue
        scale = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
        gap = float(np.abs(rest - end).min()) / scale if scale > 0 else 0.0
        if gap > best[2]:
            best = (float(end), count / column.size, gap)
    return best
