"""What led up to the first NaN or Inf: values that had been growing before mean divergence, not a faulty operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.checks.numerics.operations import magnitude
from netdoctor.checks.numerics.safe_forms import match
from netdoctor.recording import Kind, Origin, Recording, Role, Series, Stat, Track

WINDOW = 12  # sampled steps looked back on: about the last third of a long run, as sampling thins by 1.1 per sample
GROWN = 100.0  # two decades within the window: healthy scales change by less than one once the first steps are over
ORDINARY = 10.0  # scales under this are no explosion, however they came about
HUGE = 1e15  # products of two such values pass 1e30; nothing in a working training comes near


@dataclass(frozen=True, slots=True)
class Growth:
    """A quantity that grew: from `start` at `since` to `end`, the last finite value before the NaN or Inf."""

    what: str
    start: float
    end: float
    since: int
    until: int

    @property
    def factor(self) -> float:
        """How many times it grew."""
        return self.end / self.start

    def __str__(self) -> str:
        span = self.until - self.since
        before = f"In the {span} steps before" if span > 1 else "In the step before"
        return f"{before}, {self.what} grew from {self.start:.3g} to {self.end:.3g}."


def diverged(recording: Recording, origin: Origin) -> bool:
    """Whether an ordinary operation overflowed on huge values, or scales had been growing by decades before."""
    if _alarming(_largest(_scales(recording, origin), origin.step)) is not None:
        return True
    return match(origin).ordinary and (magnitude(origin) > HUGE or origin.kind == "Inf")


def story(recording: Recording, origin: Origin) -> str:
    """One sentence on the largest growth over the steps before, or on growth through the depth of the net; else ""."""
    grown = _alarming(_largest(_scales(recording, origin), origin.step))
    if grown is None and match(origin).ordinary:
        grown = _alarming(_largest(_outcomes(recording), origin.step))
    if grown is not None:
        return str(grown) + _lr(recording, origin.step)
    return _through_depth(recording, origin.step)


def _alarming(grown: Growth | None) -> Growth | None:
    """A layer that starts at zero grows by decades too, but from next to nothing to something ordinary."""
    return grown if grown is not None and grown.factor >= GROWN and grown.end >= ORDINARY else None


def _largest(scales: Iterator[tuple[str, Track | Series]], step: int) -> Growth | None:
    found = [grown for what, track in scales if (grown := _growth(what, track, step)) is not None]
    return max(found, key=lambda grown: grown.factor, default=None)


def _scales(recording: Recording, origin: Origin) -> Iterator[tuple[str, Track | Series]]:
    """Weights, and activations of weighted layers upstream of the operation: what it made itself is no run-up to it."""
    place = recording.layer_at(origin.module) if origin.module else None
    for layer in recording.of_kind(Kind.LINEAR, Kind.RECURRENT, Kind.NORM, Kind.ATTENTION):
        track = recording.of_layer(layer, Stat.RMS)
        if track is not None and (place is None or layer.order <= place.order):
            yield f"the scale of {layer.spoken}", track
    for name in recording.parameters:
        if (track := recording.of_parameter(name, Stat.RMS)) is not None and name.endswith("weight"):
            yield f"the scale of {name}", track


def _outcomes(recording: Recording) -> Iterator[tuple[str, Track | Series]]:
    if "gradient norm" in recording.scalars:
        yield "the gradient norm", recording.scalars["gradient norm"]
    for label, series in recording.losses.items():
        yield f"the {label}", series


def level_before(recording: Recording) -> float | None:
    """The level of the losses in the steps before the first NaN or Inf; None where there were none."""
    origin, series = recording.origin, recording.loss
    if origin is None or series is None:
        return None
    values = series.values[(series.steps < origin.step) & np.isfinite(series.values)][-WINDOW:]
    return float(np.median(values)) if len(values) else None


def _growth(what: str, track: Track | Series, step: int) -> Growth | None:
    kept = (track.steps <= step) & np.isfinite(track.values) & (np.abs(track.values) > 0)
    steps, values = track.steps[kept][-WINDOW:], np.abs(track.values[kept][-WINDOW:])
    if len(values) < 2:
        return None
    first = int(np.argmin(values))
    if values[-1] < values.max() or first == len(values) - 1:
        return None  # a peak that passed is no run-up
    return Growth(what, float(values[first]), float(values[-1]), int(steps[first]), int(steps[-1]))


def _through_depth(recording: Recording, step: int) -> str:
    """Activations that grow by decades from the first to the last finite layer, within the step."""
    scales = [(layer.name, _at(recording.of_layer(layer, Stat.RMS), step)) for layer in recording.layers]
    finite = [(name, value) for name, value in scales if np.isfinite(value) and value > 0]
    if len(finite) < 2 or finite[-1][1] < HUGE or finite[-1][1] < GROWN * finite[0][1]:
        return ""
    (first, low), (last, high) = finite[0], finite[-1]
    return f"Through the depth of the net the activations grow from {low:.3g} ({first}) to {high:.3g} ({last})."


def _at(track: Track | None, step: int) -> float:
    if track is None or not (track.steps <= step).any():
        return float("nan")
    return float(track.values[track.steps <= step][-1])


def _lr(recording: Recording, step: int) -> str:
    """The learning rate, where updates rather than the forward pass made the growth."""
    rates = recording.scalars.get("lr")
    known = np.array([]) if rates is None else rates.values[rates.steps <= step]
    return f" The learning rate was {known[-1]:.3g}." if len(known) else ""


def largest_update(recording: Recording, step: int) -> tuple[str, float] | None:
    """The parameter with the largest finite update ratio at the last sampled step up to `step`."""
    found = []
    for name in recording.parameters:
        ratio = recording.update_ratio(name)
        if ratio is not None and np.isfinite(value := _at(ratio, step)):
            found.append((name, value))
    return max(found, key=lambda pair: pair[1], default=None)


def gradient_rms(recording: Recording, name: str, step: int) -> float:
    """RMS of a parameter's gradient at the last sampled step up to `step`; NaN when unknown."""
    return _at(recording.of_parameter(name, Stat.RMS, Role.WEIGHT_GRADIENT), step)
