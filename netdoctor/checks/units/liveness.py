"""Which units of rectifiers are dead, and since when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from netdoctor.checks.units.window import before, feeder, late_start
from netdoctor.recording import Layer, Recording, Role, Stat, Track, shared

# A layer that is silent as a whole needs fewer samples: nothing from 4 units for 64 samples is as unlikely as nothing from one
# for 256. No more than 4 are counted, for units are not independent of each other.
TOGETHER = 4


@dataclass(frozen=True)
class Liveness:
    """One rectifier: which units are dead in the window, and the last step in which each was active (-1: never)."""

    layer: Layer
    feeder: Layer | None
    dead: NDArray[np.bool_]
    last_active: NDArray[np.int64]
    steps: int  # sampled steps in the window
    samples: float  # values per unit in the window
    first_step: int  # of the window
    trained: bool  # False for idle units of a frozen, pretrained part: no fault of this run
    zero_gradient: float  # share of the dead units whose incoming weights got exactly no gradient; NaN when unknown

    @cached_property
    def share(self) -> float:
        """The share of dead units."""
        return float(self.dead.mean())

    @cached_property
    def from_start(self) -> bool:
        """Whether most of the dead units never gave anything."""
        return bool(np.mean(self.last_active[self.dead] < 0) >= 0.5)

    @cached_property
    def died_after(self) -> int:
        """The step after which they died (the median over those that lived once)."""
        lived = self.last_active[self.dead & (self.last_active >= 0)]
        return int(np.median(lived)) if len(lived) else 0


def examine(recording: Recording, end: int, fewest: int, enough: float) -> Iterator[Liveness | Layer]:
    """Each rectifier's liveness, from the steps before `end`; the layer itself where there is too little to judge it.

    Calls of one module that are fed by the same weights (a siamese or unrolled net) are one set of units: a unit is
    active if it is in any call; so are calls of one line that no weights feed (a decoder's embedding, first of the start token
    alone). Calls that different layers feed (one nn.ReLU used all over) are judged apart.
    """
    for fed, group in _groups(recording):
        tracks = [before(track, end) for layer in group if (track := recording.of_layer(layer, Stat.UNIT_ACTIVE))]
        yield _liveness(recording, group, fed, tracks, fewest, enough) or group[0]


def died(recording: Recording, share: float = 0.5, fewest: int = 4, enough: float = 256.0) -> bool:
    """Whether an update killed this share of the units of a rectifier; the limits are those of `dead-relu`."""
    found = examine(recording, recording.steps, fewest, enough)
    return any(
        isinstance(x, Liveness) and x.trained and x.share >= share and not x.from_start and x.died_after > 0
        for x in found
    )


def _groups(recording: Recording) -> list[tuple[Layer | None, list[Layer]]]:
    """The calls that are one set of units, each with the layer that feeds the first of them."""
    groups: dict[tuple[str, str, str], tuple[Layer | None, list[Layer]]] = {}
    for layer in recording.layers:
        if recording.of_layer(layer, Stat.UNIT_ACTIVE) is not None:
            fed = feeder(recording, layer)
            line = f"line {layer.source.line}" if layer.type.islower() and layer.source else f"call {layer.call}"
            weight = fed.weight if fed is not None and fed.weight else line
            groups.setdefault((layer.path, layer.type, weight), (fed, []))[1].append(layer)
    return list(groups.values())


def _liveness(
    recording: Recording, group: list[Layer], fed: Layer | None, tracks: list[Track], fewest: int, enough: float
) -> Liveness | None:
    steps, active = _any_call(tracks)
    if len(steps) == 0:
        return None
    samples = _samples(recording, group, steps)
    start = late_start(steps, samples, fewest, enough)
    if start is None:
        start = late_start(steps, samples, fewest, enough / min(active.shape[1], TOGETHER))
        if start is None or active[start:].any():
            return None
    dead: NDArray[np.bool_] = np.logical_not(active[start:].any(axis=0))
    ever = _last_active(steps, active, start, dead)
    confirmed = _confirmed(recording, fed, dead, int(steps[start]), int(steps[-1]))
    window, seen = len(steps) - start, float(samples[start:].sum())
    return Liveness(group[0], fed, dead, ever, window, seen, int(steps[start]), _trained(recording, fed), confirmed)


def _last_active(
    steps: NDArray[np.int64], active: NDArray[np.bool_], start: int, dead: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Per unit the last step in which it gave something, -1 where it never did; of living units the end of the run, unasked."""
    ever = np.full(dead.shape, steps[-1])
    if dead.any():
        ever[dead] = np.where(active[:start, dead], steps[:start, None], -1).max(axis=0, initial=-1)
    return ever


def _trained(recording: Recording, fed: Layer | None) -> bool:
    parameter = recording.parameters.get(fed.weight) if fed is not None else None
    return parameter is None or parameter.requires_grad


def _any_call(tracks: list[Track]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Steps, and per step and unit whether any call gave a non-zero value; calls of another shape are left out."""
    first = tracks[0]
    active = first.values > 0
    for other in tracks[1:]:
        if other.values.shape == first.values.shape and np.array_equal(other.steps, first.steps):
            active = active | (other.values > 0)
    return first.steps, active


def _samples(recording: Recording, group: list[Layer], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    total = np.zeros(len(steps))
    for layer in group:
        track = recording.of_layer(layer, Stat.SAMPLES)
        if track is not None:
            both, _, seen = shared(Track(steps, total), track)
            total[np.searchsorted(steps, both)] += seen
    return total


def _confirmed(recording: Recording, fed: Layer | None, dead: NDArray[np.bool_], first: int, last: int) -> float:
    track = None
    if fed is not None and fed.weight:
        track = recording.of_parameter(fed.weight, Stat.UNIT_ZERO_GRADIENT, Role.WEIGHT_GRADIENT)
        track = track or recording.of_parameter(fed.weight, Stat.UNIT_ZERO_GRADIENT)
    if track is None or track.values.shape[1:] != dead.shape or not dead.any():
        return float("nan")
    inside = (track.steps >= first) & (track.steps <= last)
    return float((track.values[inside][:, dead] > 0).all(axis=0).mean()) if inside.any() else float("nan")
