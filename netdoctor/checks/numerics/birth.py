"""Where the first NaN or Inf was born: as the replay found it, or as well as the recorded statistics tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from netdoctor.recording import MAX_SKIPS, Layer, Origin, Recording, Role, Series, Stat, Track


def birth(recording: Recording) -> Origin | None:
    """The origin of the first non-finite value that did harm, or None.

    Gradients that overflow under a loss scaler are skipped by design: they count only when the loss breaks too, or when
    the scaler keeps skipping.
    """
    origin = recording.origin or _from_statistics(recording)
    if origin is not None and not origin.reproduced and not origin.operation and not origin.module:
        origin = _placed(recording, origin)
    if origin is None or (origin.phase == "backward" and _skipped_by_design(recording)):
        return None
    return origin


def recovered(recording: Recording, origin: Origin) -> bool:
    """Whether the losses became finite again and stayed so: the steps were skipped, or did no lasting harm."""
    later = [series.values[series.steps > origin.step] for series in recording.losses.values()]
    return bool(later) and all(len(values) > 0 and np.isfinite(values[-1]) for values in later)


def _skipped_by_design(recording: Recording) -> bool:
    skips = recording.counts.get("scaler-skip", 0)
    return 0 < skips <= MAX_SKIPS and _first_bad_loss(recording) is None


def _from_statistics(recording: Recording) -> Origin | None:
    """An origin put together from tracks, for runs whose first non-finite step could not be replayed."""
    loss_step = _first_bad_loss(recording)
    gradient = _first_bad(recording.scalars.get("gradient norm"))
    if loss_step is None and gradient is None:
        return None
    note = "the step could not be replayed; this is what the recorded statistics say"
    if loss_step is None or (gradient is not None and gradient < loss_step):
        return Origin("backward", "NaN", gradient or 0, reproduced=False, note=note)
    return Origin("forward", _kind(recording), loss_step, reproduced=False, note=note)


def _placed(recording: Recording, origin: Origin) -> Origin:
    """An origin that the replay could not find, at the module that the statistics point to."""
    if origin.phase == "backward":
        return replace(origin, module=_bad_gradient(recording))
    layer = _bad_layer(recording, origin.step)
    return origin if layer is None else replace(origin, module=layer.path, call=layer.call)


def _first_bad(series: Series | None) -> int | None:
    if series is None or np.isfinite(series.values).all():
        return None
    return int(series.steps[~np.isfinite(series.values)][0])


def _first_bad_loss(recording: Recording) -> int | None:
    return min((s for s in map(_first_bad, recording.losses.values()) if s is not None), default=None)


def _kind(recording: Recording) -> str:
    values = np.concatenate([series.values for series in recording.losses.values()])
    broken = values[~np.isfinite(values)]
    return "NaN" if len(broken) == 0 or np.isnan(broken[0]) else "Inf"


def _bad_layer(recording: Recording, step: int) -> Layer | None:
    """The first layer, in order of execution, with a non-finite output in that very step; None where it was not sampled, as
    weights that took the step give NaN everywhere later."""
    bad = [layer for layer in recording.layers if _onset(recording.of_layer(layer, Stat.NONFINITE), step) == 1 + step]
    return min(bad, key=lambda layer: layer.order) if bad else None


def _onset(track: Track | None, step: int) -> int | None:
    """1 + the first step from `step` on with non-finite values (so that it is true), or None."""
    if track is None:
        return None
    bad = (track.values > 0) & (track.steps >= step)
    return 1 + int(track.steps[bad][0]) if bad.any() else None


def _bad_gradient(recording: Recording) -> str:
    """The module of the last parameter, in order of execution, with a non-finite gradient: backward met it first."""
    bad = [
        parameter.module
        for parameter in recording.parameters.values()
        if _onset(recording.track(parameter.site(Role.WEIGHT_GRADIENT), Stat.NONFINITE), 0)
    ]
    return bad[-1] if bad else ""
