"""Histograms of weights and gradients at a few steps of the run, all parameters of an optimizer in one pass."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture import statistics
from netdoctor.capture.naming import ModuleNames
from netdoctor.capture.parts import Parts, Place, Row
from netdoctor.recording import Histogram, Role

BINS = 24
MOST = 16  # histograms of one parameter; then every second one goes
GROWTH = 2.0  # each is taken at a step this much later than the one before: 11 in 1,000 steps
PARAMETERS = 512  # of a model with more, the first ones
VALUES = 512  # strided values of a parameter, about, from which its histogram is made


class HistogramRecorder:
    """Keeps at most `MOST` histograms of every matrix or kernel and of its gradient. Biases and scales are left out."""

    def __init__(self, names: ModuleNames, parts: Parts | None = None) -> None:
        self._names, self._parts = names, parts or Parts()
        self._step, self._next, self._wanted = -1, 0, False
        self._rows = self._parts.histograms
        self._seen: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # parameter → its stride

    def see(self, parameters: list[Tensor], step: int) -> None:
        """Take the weights and gradients as an optimizer is about to use them, if it is time again. Nothing is changed."""
        if step != self._step:  # once per step, for all optimizers alike
            self._step, self._wanted = step, step >= self._next
            self._next = max(step + 1, int(step * GROWTH)) if self._wanted else self._next
        if self._wanted:
            self._take(parameters, step)

    def finish(self, step: int) -> None:
        """Take the weights as the training left them, and let go of the parameters. Of sharded ones only parts are here."""
        left = [p for ref, _ in self._seen.values() if (p := ref()) is not None and not statistics.is_shard(p)]
        if left and step > self._step:
            self._take(left, step, gradients=False)
        self._seen.clear()

    def histograms(self, display: dict[str, str]) -> list[Histogram]:
        """What was taken so far, under the names that the reader knows."""
        found = []
        for (key, role), rows in self._rows.items():
            steps, low, high, counts = zip(*rows, strict=True)
            made = Histogram(key, role, np.array(steps, np.int64), np.array(low), np.array(high), np.stack(counts))
            found.append(replace(made, parameter=display.get(key, key)))
        return found

    def _take(self, parameters: list[Tensor], step: int, gradients: bool = True) -> None:
        places: list[Place] = []
        samples: list[Tensor] = []
        for parameter in parameters:
            key = self._names.parameter_key(parameter) if parameter.dim() >= 2 else ""
            if not key or (id(parameter) not in self._seen and len(self._seen) >= PARAMETERS):
                continue
            for role, tensor in (
                (Role.WEIGHT, parameter),
                (Role.WEIGHT_GRADIENT, parameter.grad if gradients else None),
            ):
                sharded, values = statistics.is_shard(parameter), None if tensor is None else statistics.floats(tensor)
                if sharded:
                    self._parts.sampling(step)
                if values is not None:
                    places.append((key, role))
                    samples.append(values.reshape(-1)[:: self._stride(parameter)].float())
                    if sharded:
                        self._parts.sample(step, places[-1], samples[-1])
        if samples:
            for place, row in zip(places, histograms(samples, step), strict=True):
                keep(self._rows.setdefault(place, []), row)

    def _stride(self, parameter: Tensor) -> int:
        known = self._seen.get(id(parameter))
        if known is None or known[0]() is not parameter:
            known = self._seen[id(parameter)] = weakref.ref(parameter), statistics.sample_stride(parameter, VALUES)
        return known[1]


def most(parameter: Tensor) -> int:
    """How many values of a parameter a histogram counts, at most; 0 where it has none. Of a sharded one, of the whole."""
    wanted = parameter.dim() >= 2 and parameter.is_floating_point()
    return -(-parameter.numel() // statistics.sample_stride(parameter, VALUES)) if wanted else 0


def keep(rows: list[Row], row: Row) -> None:
    """Add a histogram to a parameter's, if it is a later one."""
    if rows and rows[-1][0] >= row[0]:
        return  # of several optimizers that hold the same parameter the first counts
    if len(rows) >= MOST:
        del rows[1::2]
    rows.append(row)


def histograms(samples: list[Tensor], step: int) -> list[Row]:
    """Counts over `BINS` equal bins from each sample's lowest to its highest finite value: one transfer, one pass."""
    sizes = np.array([len(sample) for sample in samples])
    devices = {sample.device for sample in samples}
    flat = torch.cat(samples) if len(devices) == 1 else torch.cat([sample.cpu() for sample in samples])
    values = flat.cpu().numpy()
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    owner = np.repeat(np.arange(len(samples)), sizes)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(values)
        low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
        high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
        values, owner = values[finite], owner[finite]
    low, high = (
        low.astype(np.float64),
        high.astype(np.float64),
    )  # whose difference may be beyond what single precision holds
    with np.errstate(all="ignore"):
        per_bin = np.where(high > low, BINS / (high - low), 0.0)
        bins = ((values - low[owner]) * per_bin[owner]).astype(np.int64)
    np.clip(bins, 0, BINS - 1, out=bins)
    counts = np.bincount(owner * BINS + bins, minlength=len(samples) * BINS).reshape(-1, BINS)
    empty = low > high  # nothing was finite
    low[empty] = high[empty] = np.nan
    return [(step, float(low[at]), float(high[at]), counts[at].astype(np.int64)) for at in range(len(samples))]
