"""How far bounded activations are saturated, since when, and what makes their input large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netdoctor.checks.signal.initialisation import expression
from netdoctor.checks.training.optimizer_line import with_lr
from netdoctor.checks.units.hidden import is_hidden
from netdoctor.checks.units.window import before, entering_at, feeder, input_of, late_start, value_at
from netdoctor.finding import Fix, Reach
from netdoctor.recording import Kind, Layer, Recording, Role, Stat

BOUNDS = {"sigmoid": (0.018, 0.982), "tanh": (-0.999, 0.999), "hardtanh": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0)}
_SLOPES = {"sigmoid": 0.25, "tanh": 1.0, "hardtanh": 1.0, "hardsigmoid": 1 / 6}  # steepest derivative of each
_LARGE_WEIGHT = 2.0  # times 1/sqrt(fan_in): over that the layer itself blows the signal up


@dataclass(frozen=True, slots=True)
class Saturation:
    """One activation: the share of units that stay saturated through the window, since which step, and what passes.

    `passed` is the gradient before over the gradient behind the function, as a fraction of its steepest slope.
    """

    layer: Layer
    function: str
    share: float
    since: int
    passed: float


def examine(recording: Recording, end: int, fewest: int, enough: float, samples: float) -> Iterator[Saturation | None]:
    """Each hidden sigmoid or tanh, from the steps before `end`; None for one with too little to judge it."""
    for layer in recording.of_kind(Kind.ACTIVATION):
        if (layer.function or layer.type.lower()) in BOUNDS and is_hidden(recording, layer):
            track = recording.of_layer(layer, Stat.UNIT_SATURATED)
            if track is not None and track.values.ndim == 2:
                yield _saturation(recording, layer, end, fewest, enough, samples)


def cause(recording: Recording, item: Saturation) -> str:
    """What makes the input of the activation large, in one sentence."""
    fed, scale = feeder(recording, item.layer), math.hypot(*entering_at(recording, item.layer, item.since))
    large = f"What goes in has scale {scale:.3g}" if math.isfinite(scale) else "What goes in is too large"
    if item.since > 0:
        return f"{large} since step {item.since}: updates drove it there."
    if fed is not None and _blown_up(recording, fed):
        return f"{large}, because the weights of {fed.path} are large for their fan-in of {fed.fan_in}."
    return f"{large}: the weights, or the scale or number of what they sum up, are too large."


def fixes(recording: Recording, item: Saturation) -> tuple[Fix, ...]:
    """Smaller weights, a scaled input or a lower learning rate; then a function that does not saturate."""
    fed = feeder(recording, item.layer)
    relu = Fix(
        "relu", "Use a ReLU: it does not saturate above 0.", f"nn.ReLU()  # in place of {item.layer.type}", Reach.MODEL
    )
    if item.since > 0 and recording.optimizers and math.isfinite(recording.optimizers[0].lr):
        lr = recording.optimizers[0].lr / 10
        return Fix(
            "lower-lr", f"Lower the learning rate to {lr:g}.", with_lr(recording.optimizers[0], lr), Reach.RUN
        ), relu
    if fed is not None and fed.weight and _blown_up(recording, fed):
        gain = 'torch.nn.init.calculate_gain("tanh")' if item.function == "tanh" else "1.0"
        code = f"torch.nn.init.xavier_normal_({expression(recording, fed.weight)}, gain={gain})"
        return Fix("variance-scaling-init", "Initialise the layer before for its fan.", code, Reach.MODEL), relu
    says = "Bring what goes in to a scale of about 1: standardise it, or take a mean in place of a sum."
    code = f"x = nn.LayerNorm({item.layer.units})(x)  # before the {item.function}; made once, in __init__"
    return Fix("scale-input", says, code, Reach.MODEL), relu


def _saturation(
    recording: Recording, layer: Layer, end: int, fewest: int, enough: float, samples: float
) -> Saturation | None:
    whole, counted = recording.of_layer(layer, Stat.UNIT_SATURATED), recording.of_layer(layer, Stat.SAMPLES)
    if whole is None or counted is None:
        return None
    track = before(whole, end)
    seen = np.interp(track.steps, counted.steps, counted.values) if len(track.steps) else np.array([])
    start = late_start(track.steps, seen, fewest, enough)
    if start is None:
        return None
    stuck = track.values > samples
    units: NDArray[np.bool_] = np.asarray(stuck[start:].all(axis=0))
    function = layer.function or layer.type.lower()
    passed = _passed(recording, layer, int(track.steps[start])) / _SLOPES[function] if units.any() else math.nan
    most_at_once = float(track.values[0].mean()) > 0.5  # few units left their ends even then: no update is to blame
    since = int(track.steps[0]) if most_at_once else _since(stuck, units, track.steps)
    return Saturation(layer, function, float(units.mean()), since, passed)


def _since(stuck: NDArray[np.bool_], units: NDArray[np.bool_], steps: NDArray[np.int64]) -> int:
    """The first step from which on half of the stuck units stayed saturated to the end."""
    if not units.any():
        return 0
    free = ~stuck[:, units]
    last_free = np.where(free, np.arange(len(steps))[:, None], -1).max(axis=0)
    return int(steps[int(np.median(last_free)) + 1])


def _passed(recording: Recording, layer: Layer, step: int) -> float:
    """RMS of the gradient before over that behind the activation; NaN unless both belong to the same units."""
    given = input_of(recording, layer)
    if given is None:
        return math.nan
    inner = value_at(recording.of_layer(given, Stat.RMS, Role.OUTPUT_GRADIENT), step)
    outer = value_at(recording.of_layer(layer, Stat.RMS, Role.OUTPUT_GRADIENT), step)
    return inner / outer if outer > 0 else math.nan


def _blown_up(recording: Recording, fed: Layer) -> bool:
    track = recording.of_parameter(fed.weight, Stat.RMS)
    return track is not None and fed.fan_in > 0 and track.first * math.sqrt(fed.fan_in) > _LARGE_WEIGHT
