"""Depth profiles: the decimal logarithm of a scale, layer by layer, and the straight line through it.

A first:last ratio alone is confounded by the sizes of those two layers, by weight sharing and by residual branches
(peers.md c2), so a profile is judged by its Theil-Sen slope (median of all pairwise slopes; Sen 1968), which a
minority of odd layers (a zero-initialised residual end, a small head) cannot move, and confirmed by its ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from netdoctor.recording import Array, Kind, Layer, Recording, Role, Stat, Track, median, middle, shared

FLOOR = 1e-30  # stands for zero in a logarithm; float32's smallest normal number is 1.2e-38
ROUNDING = 1e-9  # a variation under 1e-9 of the scale is rounding (float32 resolves 1.2e-7, averaged over many entries)
CEILING = 38.5  # decades; stands for infinity: float32's largest number is 3.4e38
REPEATS = 4  # a module called at least 4 times in a step is a loop over time (or depth) with a profile of its own
ALONG = 0.4  # share of neighbours that must follow the line: two towers of different scale make one jump, not a trend
SIGMOIDS = frozenset({"sigmoid", "hardsigmoid", "softmax", "logsigmoid"})
SQUASHING = SIGMOIDS | {"tanh", "hardtanh", "softsign"}


@dataclass(frozen=True)
class Profile:
    """Decades (log10 of a scale) of at least two layers, in order of execution."""

    layers: tuple[Layer, ...]
    decades: Array

    @cached_property
    def slope(self) -> float:
        """Decades per layer: the median of all pairwise slopes."""
        rows, columns = np.triu_indices(self.decades.size, 1)
        return float(np.median((self.decades[columns] - self.decades[rows]) / (columns - rows)))

    @cached_property
    def total(self) -> float:
        """Decades from the first to the last layer on the fitted line; 0 where the ends or the neighbours deny it."""
        slope, third = self.slope, max(1, self.decades.size // 3)
        fitted = slope * (self.decades.size - 1)
        ends = median(self.decades[-third:]) - median(self.decades[:third])
        steps = np.diff(self.decades) * np.sign(slope)
        along = float(np.mean(steps > abs(slope) / 4))
        return fitted if ends * fitted > 0 and abs(ends) >= abs(fitted) / 2 and along >= ALONG else 0.0


def weighted(recording: Recording) -> Iterator[list[Layer]]:
    """The chains of linear and recurrent layers: per model (first calls) and per module called in a loop."""
    layers = recording.of_kind(Kind.LINEAR, Kind.RECURRENT)
    for model in dict.fromkeys(layer.model for layer in layers):
        yield [layer for layer in layers if layer.model == model and layer.call == 0]
    for path in dict.fromkeys(layer.path for layer in layers if layer.call >= REPEATS - 1):
        yield [layer for layer in layers if layer.path == path]


def profile(layers: Sequence[Layer], value: Callable[[Layer], float | None], shortest: int) -> Profile | None:
    """The profile of `value` over the layers where it is known and positive; None for fewer than `shortest`."""
    known = [(layer, scale) for layer in layers if (scale := value(layer)) is not None and scale > 0]
    if len(known) < max(2, shortest):
        return None
    decades = np.log10([min(max(scale, FLOOR), 10**CEILING) for _, scale in known])
    return Profile(tuple(layer for layer, _ in known), np.asarray(decades, dtype=np.float64))


def at(track: Track | None, index: int) -> float | None:
    """A track's value at a sample, infinity where it was not finite, None where there is no track."""
    if track is None or track.values.size == 0:
        return None
    value = float(track.values[index])
    return value if np.isfinite(value) else float("inf")


def scale(recording: Recording, layer: Layer, index: int = 0, role: Role = Role.OUTPUT) -> float | None:
    """The root mean square of a layer's activation (or of the gradient with respect to it) at a sample."""
    return at(recording.of_layer(layer, Stat.RMS, role), index)


def variation(recording: Recording, layer: Layer, index: int = 0) -> float | None:
    """How much a layer's output varies over the batch, at least `ROUNDING` of its scale; None where that was not taken.

    This is the part of the signal that depends on the input: biases keep the root mean square up when it is long gone.
    """
    std, rms = at(recording.of_layer(layer, Stat.BATCH_STD), index), scale(recording, layer, index)
    return None if std is None or rms is None else max(std, ROUNDING * rms)


def signal(recording: Recording, layer: Layer, index: int = 0) -> float | None:
    """The variation over the batch where it was taken and the batch can vary, else the scale."""
    taken = recording.of_layer(layer, Stat.BATCH_STD) is not None and varies(recording)
    return (variation if taken else scale)(recording, layer, index)


def varies(recording: Recording) -> bool:
    """Whether the batch can vary at all: False for batches of one sample, where every BATCH_STD is zero."""
    return any((at(recording.of_layer(layer, Stat.BATCH_STD), 0) or 0.0) > 0 for layer in recording.layers)


def cut(recording: Recording, dead: float) -> bool:
    """Whether this share of a layer's units gives exactly 0 from the start: such a signal is cut, not shrunk."""
    tracks = (recording.of_layer(layer, Stat.UNIT_ACTIVE) for layer in recording.layers)
    return any(track is not None and 1 - track.first >= dead for track in tracks)


def left(recording: Recording, found: Profile, index: int) -> float:
    """The variation over the batch that is left at the last hidden layer at a sample, as a share of its scale."""
    layer = found.layers[-2]
    return (signal(recording, layer, index) or 0.0) / (scale(recording, layer, index) or 1.0)


def gradient_ratio(recording: Recording, layer: Layer, early: bool = True) -> float | None:
    """Median of rms(gradient) / rms(weight) over the first (or last) 8 sampled steps; None where that says nothing.

    Left out are frozen weights, and weights that start at zero (residual ends, LoRA's B), whose ratio is boundless.
    """
    parameter = recording.parameters.get(layer.weight)
    weight = recording.of_parameter(layer.weight, Stat.RMS)
    gradient = recording.of_parameter(layer.weight, Stat.RMS, Role.WEIGHT_GRADIENT)
    if parameter is None or weight is None or gradient is None or not parameter.requires_grad:
        return None
    if weight.values[0] <= 1e-8:
        return None
    _, *values = shared(weight, gradient)
    scales, gradients = ((found[:8] if early else found[-8:]).tolist() for found in values)
    ratios = [g / s for s, g in zip(scales, gradients, strict=True) if s > 1e-8 and math.isfinite(g)]
    return middle(ratios) if ratios else None


def gradients(recording: Recording, shortest: int, early: bool = True) -> Iterator[Profile]:
    """The profiles of gradient to weight, one per model, over distinct weights."""
    for chain in weighted(recording):
        distinct = list({layer.weight: layer for layer in reversed(chain) if layer.weight}.values())[::-1]
        found = profile(distinct, lambda layer: gradient_ratio(recording, layer, early), shortest)
        if found is not None:
            yield found


def begin(recording: Recording, found: Profile, value: Callable[[Layer], float | None]) -> Layer:
    """The weight layer at which the change starts: the first place that is half a layer's change off the first one.

    Activations count too, as a scaling behind a layer shows there first; they stand for their layer. When the second
    layer starts it and the first has weights of the same gain, the first is as much to blame.
    """
    chain, start = found.layers, found.decades[0]
    place = chain[0]
    for layer in recording.layers[recording.layers.index(chain[0]) + 1 :]:
        if layer.model != chain[0].model or layer.kind not in {Kind.LINEAR, Kind.RECURRENT, Kind.ACTIVATION}:
            continue
        place = layer if layer.kind is not Kind.ACTIVATION else place
        measured = value(layer)
        if measured and (np.log10(max(measured, FLOOR)) - start) / found.slope >= 0.5:
            return chain[0] if place in chain[:2] and _alike(recording, *chain[:2]) else place
    return chain[0]


def _alike(recording: Recording, first: Layer, second: Layer) -> bool:
    """Whether the weights of two layers have the same gain, rms(weight) sqrt(fan_in), within a factor of 2."""
    scales = [at(recording.of_parameter(layer.weight, Stat.RMS), 0) or 0.0 for layer in (first, second)]
    one, other = scales[0] * first.fan_in**0.5, scales[1] * second.fan_in**0.5
    return bool(0 < one <= 2 * other and other <= 2 * one)


def share_of(recording: Recording, layers: Sequence[Layer], names: frozenset[str]) -> float:
    """The share of activation layers of the same model that are of the named types (lower case)."""
    models = {layer.model for layer in layers}
    found = [layer for layer in recording.of_kind(Kind.ACTIVATION) if layer.model in models]
    return float(np.mean([layer.type.lower() in names for layer in found])) if found else 0.0


def starved(recording: Recording, layer: Layer, limit: float) -> bool:
    """Whether a layer stands still: its updates are under `limit` of its weights, or its gradient under the eps."""
    updates = recording.update_ratio(layer.weight)
    if updates is not None and median(updates.values) < limit:
        return True
    gradient = recording.of_parameter(layer.weight, Stat.RMS, Role.WEIGHT_GRADIENT)
    eps = recording.parameters[layer.weight].optimizer_eps
    return gradient is not None and median(gradient.values) < eps
