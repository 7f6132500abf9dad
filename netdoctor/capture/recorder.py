"""Collects what was measured, in bounded memory, and makes the `Recording` of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture import many, statistics
from netdoctor.capture.parts import Parts
from netdoctor.capture.statistics import Moments
from netdoctor.recording import Event, Recording, Series, Site, SourceLine, Stat, Track

R = TypeVar("R")
FIRST_STEPS = 8  # sampled one by one; what goes wrong at the start goes wrong here
GROWTH = 1.25  # then each sampled step is 25 % later than the one before,
LATER, LATER_GROWTH = 64, 1.35  # and after so many steps 35 %: 28 samples in 1,000 steps, 51 in a million
MAX_POINTS = 4096  # of a scalar series
_ALWAYS_KEPT = 16  # the first events of a kind, however late it comes
MAX_EVENTS = 512  # in order, from the start; totals are counted for ever


class Schedule:
    """Which steps are measured in full: the first ones, then ever more thinly."""

    def __init__(self, every: int | None = None) -> None:
        self._every = every
        self._next = 0

    def due(self, step: int) -> bool:
        """Whether this step is measured; ask once per step."""
        if self._every is not None:
            return step % self._every == 0
        if step < self._next:
            return False
        growth = GROWTH if step < LATER else LATER_GROWTH
        self._next = step + 1 if step + 1 < FIRST_STEPS else max(step + 1, int(step * growth))
        return True


class SeriesRecorder:
    """A scalar per step. When it grows too long every second point goes, so that its memory is bounded for ever."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._sums: list[float] = []
        self._counts: list[int] = []
        self._stride = 1
        self._at = -1  # the newest step

    def add(self, step: int, value: float) -> None:
        """Add a value; several values of one step are averaged."""
        if step == self._at:
            self._sums[-1] += value
            self._counts[-1] += 1
            return
        if step % self._stride and (
            math.isfinite(value) or not math.isfinite(self.last)
        ):  # where values turn bad is kept
            return
        self._at = step
        self._steps.append(step)
        self._sums.append(value)
        self._counts.append(1)
        if len(self._steps) >= MAX_POINTS:
            self._stride *= 2
            kept = [i for i, s in enumerate(self._steps) if s % self._stride == 0]
            self._steps, self._sums = [self._steps[i] for i in kept], [self._sums[i] for i in kept]
            self._counts = [self._counts[i] for i in kept]
            self._at = self._steps[-1]

    @property
    def last(self) -> float:
        """The newest value, NaN when there is none."""
        return self._sums[-1] / self._counts[-1] if self._steps else float("nan")

    def series(self) -> Series:
        """What was collected."""
        values = np.asarray(self._sums, np.float64) / np.maximum(np.asarray(self._counts, np.float64), 1)
        return Series(np.asarray(self._steps, np.int64), values)


MomentRows = list[tuple[int, Moments]]  # of one site: (step, what was measured in it)
ValueRows = list[tuple[int, "NDArray[np.float64] | float"]]  # of one site and statistic


class Recorder:
    """Keeps tracks, series and events. Numbers of a device that works asynchronously are read back once, at the end of a step."""

    def __init__(self) -> None:
        self.step = 0  # the running one
        self.losses: dict[str, SeriesRecorder] = {}
        self.scalars: dict[str, SeriesRecorder] = {}
        self.events: list[Event] = []
        self.counts: dict[str, int] = {}
        self.parts = Parts()
        self.wholes: dict[
            str, SeriesRecorder
        ] = {}  # scalars of all processes, in place of those of this process's part
        self._pending: list[tuple[ValueRows, Tensor]] = []
        self._raw: list[tuple[MomentRows, int, Tensor]] = []
        self._moments: dict[Site, MomentRows] = {}
        self._values: dict[tuple[Site, Stat], ValueRows] = {}

    def rows(self, site: Site, stat: Stat) -> ValueRows:
        """Where the values of a statistic are kept: to be held by whoever measures it in every step."""
        return self._values.setdefault((site, stat), [])

    def moment_rows(self, site: Site) -> MomentRows:
        """Where the moments of a site are kept."""
        return self._moments.setdefault(site, [])

    def put(self, site: Site, stat: Stat, value: Tensor | float) -> None:
        """Keep a number (0-dim) or a vector (one entry per unit) of the running step."""
        self.put_in(self.rows(site, stat), value)

    def put_in(self, rows: ValueRows, value: Tensor | NDArray[np.float64] | float) -> None:
        """The same, for a caller that holds the rows. The first of several calls in a step stands for all."""
        if rows and rows[-1][0] == self.step:
            return
        if not isinstance(value, Tensor):
            rows.append((self.step, value))
        elif value.device.type == "cpu":
            rows.append((self.step, value.item() if value.dim() == 0 else value.numpy().astype(np.float64)))
        else:
            self._pending.append((rows, value))

    def put_moments(self, site: Site, values: Tensor) -> None:
        """Keep mean, root mean square, extremes of a float tensor of the running step."""
        self.put_moments_in(self.moment_rows(site), values)

    def put_moments_in(self, rows: MomentRows, values: Tensor, mean: bool = True) -> None:
        """The same, for a caller that holds the rows. After the first steps extremes are left out, and without `mean` the mean."""
        if rows and rows[-1][0] == self.step:
            return
        if values.device.type == "cpu":
            if self.brief(values):
                rows.append((self.step, statistics.brief_moments(values, mean)))
                return
            rows.append((self.step, Moments(values.numel(), *statistics.quick_moments(values))))
        else:
            self._raw.append((rows, values.numel(), statistics.raw_moments(values)))

    def brief(self, values: Tensor) -> bool:
        """Whether of these values only what the checks ask for after the first steps is measured, by the cheapest kernels."""
        return self.step >= FIRST_STEPS and values.dtype is torch.float32 and values.is_cpu

    def put_row(self, rows: MomentRows, moments: Moments) -> None:
        """Keep moments of the running step that are known already."""
        if not rows or rows[-1][0] != self.step:
            rows.append((self.step, moments))

    def put_each(self, rows: Iterable[list[tuple[int, R]]], values: Iterable[R]) -> None:
        """The same for many rows at once, of moments or of numbers that are no tensors."""
        step = self.step
        for kept, value in zip(rows, values, strict=True):
            if not kept or kept[-1][0] != step:
                kept.append((step, value))

    def put_scales(self, found: list[tuple[MomentRows, Tensor]]) -> None:
        """The same for many tensors of which only the root mean square matters after the first steps."""
        there = [(rows, t) for rows, t in found if t.dtype is torch.float32 and t.is_cpu]
        if there and self.step < FIRST_STEPS:
            found_there = many.whole([t for _, t in there])
        else:
            found_there = many.scales([t for _, t in there], [vanished(rows) for rows, _ in there])
        self.put_each([rows for rows, _ in there], found_there)
        for rows, values in found if len(there) < len(found) else ():
            self.put_moments_in(rows, values)

    def flush(self, step: int) -> None:
        """Read back everything that the step left on other devices, at once."""
        raw, self._raw = self._raw, []
        for (rows, count, _), row in zip(raw, read_back([tensor for _, _, tensor in raw]), strict=True):
            if not rows or rows[-1][0] != step:
                rows.append((step, Moments(count, *row.tolist())))
        pending, self._pending = self._pending, []
        for (kept, _), values in zip(pending, read_back([tensor for _, tensor in pending]), strict=True):
            if not kept or kept[-1][0] != step:
                kept.append((step, values))

    def count(
        self, kind: str, step: int, detail: str = "", value: float = float("nan"), source: SourceLine | None = None
    ) -> None:
        """Count an event, and keep it when it is one of the first."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.events) < MAX_EVENTS or self.counts[kind] <= _ALWAYS_KEPT:
            self.events.append(Event(step, kind, detail, value, source))

    def tick(self, kind: str) -> None:
        """Count an event of the running step of which nothing more is to be told."""
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count <= _ALWAYS_KEPT or len(self.events) < MAX_EVENTS:
            self.events.append(Event(self.step, kind))

    def full(self, kinds: Iterable[str]) -> bool:
        """Whether events of these kinds are only counted from now on."""
        return len(self.events) >= MAX_EVENTS and all(self.counts.get(kind, 0) > _ALWAYS_KEPT for kind in kinds)

    def keeps(self, kind: str) -> bool:
        """Whether the next event of this kind will be kept with its details, which cost something to find."""
        return len(self.events) < MAX_EVENTS or self.counts.get(kind, 0) < _ALWAYS_KEPT

    def loss(self, label: str, step: int, value: float) -> None:
        """A loss that `backward` was called on."""
        (self.losses.get(label) or self.losses.setdefault(label, SeriesRecorder())).add(step, value)

    def scalar(self, name: str, step: int, value: float) -> None:
        """A scalar of the training: lr, gradient norm, ..."""
        (self.scalars.get(name) or self.scalar_series(name)).add(step, value)

    def scalar_series(self, name: str) -> SeriesRecorder:
        """Where the values of a scalar are kept: to be held by whoever has one in every step."""
        return self.scalars.setdefault(name, SeriesRecorder())

    def all_scalars(self) -> dict[str, Series]:
        """The scalars so far. Of those that were added up over processes only what is true of all: in any part a NaN is one."""
        found = {name: series.series() for name, series in self.scalars.items()}
        for name, series in self.wholes.items():
            whole, part = series.series(), found.get(name, Series(np.empty(0, np.int64), np.empty(0)))
            bad = ~np.isfinite(part.values) & ~np.isin(part.steps, whole.steps)
            steps = np.concatenate([whole.steps, part.steps[bad]])
            order = np.argsort(steps, kind="stable")
            found[name] = Series(steps[order], np.concatenate([whole.values, part.values[bad]])[order])
        return found

    def write(self, recording: Recording) -> None:
        """Put everything into a recording."""
        recording.losses = {label: series.series() for label, series in self.losses.items()}
        recording.scalars = self.all_scalars()
        recording.events = list(self.events)
        recording.counts = dict(self.counts)
        recording.tracks = {key: track for key, rows in self._values.items() if (track := _track(rows)) is not None}
        for site, series in self._moments.items():
            found = [(step, moments.stats()) for step, moments in series]
            for stat in found[0][1] if found else ():
                kept: ValueRows = [(step, row[stat]) for step, row in found if stat in row]
                if (track := _track(kept)) is not None:
                    recording.tracks[site, stat] = track


def vanished(rows: MomentRows) -> bool:
    """Whether the squares of what was measured last vanish in single precision, and are not all zero."""
    return bool(rows) and 0 < rows[-1][1].squares * rows[-1][1].scale ** 2 < statistics.NORMAL_SQUARES[0]


def _track(rows: ValueRows) -> Track | None:
    """Rows of one width; a layer that was changed on the way has old units that are not the new ones."""
    if not rows:
        return None
    shape = np.shape(rows[0][1])
    kept = [(step, value) for step, value in rows if np.shape(value) == shape]
    return Track(np.asarray([step for step, _ in kept], np.int64), np.asarray([v for _, v in kept], np.float64))


def read_back(values: list[Tensor]) -> list[NDArray[np.float64]]:
    """The values of many small tensors, in one transfer per device and dtype, in their order and shapes."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, value in enumerate(values):
        groups.setdefault((value.device, value.dtype), []).append(index)
    found: list[NDArray[np.float64]] = [np.empty(0)] * len(values)
    for members in groups.values():
        flat = torch.cat([values[index].reshape(-1) for index in members]).to("cpu", torch.float64).numpy()
        start = 0
        for index in members:
            size = values[index].numel()
            found[index] = flat[start : start + size].reshape(values[index].shape).copy()
            start += size
    return found


def rename(recording: Recording, display: dict[str, str], labels: dict[str, str]) -> None:
    """Replace internal module keys by the paths that the reader knows, everywhere."""

    def site(old: Site) -> Site:
        return replace(
            old, module=display.get(old.module, old.module), parameter=display.get(old.parameter, old.parameter)
        )

    recording.tracks = {(site(s), stat): track for (s, stat), track in recording.tracks.items()}
    recording.layers = [
        replace(
            layer,
            path=display.get(layer.path, layer.path),
            model=labels.get(layer.path, ""),
            weight=display.get(layer.weight, layer.weight),
            bias=display.get(layer.bias, layer.bias),
        )
        for layer in recording.layers
    ]
