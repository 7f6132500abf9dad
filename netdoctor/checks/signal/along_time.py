"""How much of the gradient is left at the first position of a sequence, for each recurrence of a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from netdoctor.checks.signal.profile import REPEATS, profile, scale
from netdoctor.checks.training.decay import decay
from netdoctor.checks.training.lr_decays_too_fast import LrDecaysTooFast
from netdoctor.checks.training.lr_trials import rescue
from netdoctor.checks.training.revived import revival
from netdoctor.recording import Kind, Layer, Recording, Role, Stat

TIME = "time/"  # arms of experiments, and the path of the module
BROKEN = 10.0  # times the first loss: from there on the weights are out of scale, whatever threw them there


def ratios(recording: Recording, most: float) -> Iterator[tuple[Layer, float]]:
    """Decades of the gradient at the first position over that at the last one, at the quantile `most` of the sampled steps.

    Of those before the loss broke: what breaks it may drive the weights anywhere, and this is not about those.
    """
    whole = _broke(recording)
    for layer in recording.of_kind(Kind.RECURRENT):
        track = recording.of_layer(layer, Stat.TIME_RATIO, Role.OUTPUT_GRADIENT)
        arm = recording.arms.get(f"{TIME}{layer.path}")
        if arm is not None and not arm.failure and layer.call == 0:
            yield layer, float(arm.facts["decades"])
        elif track is not None:
            kept = track.values[np.isfinite(track.values) & (track.steps < whole)]
            if kept.size:
                yield layer, float(np.quantile(kept, most))
    layers = recording.of_kind(Kind.LINEAR, Kind.RECURRENT)
    # A recurrence has the same weights at every position; a loop over weights of their own is depth.
    for path, weight in dict.fromkeys((layer.path, layer.weight) for layer in layers if layer.call >= REPEATS - 1):
        yield from _drawn_on(recording, [layer for layer in layers if (layer.path, layer.weight) == (path, weight)])
    known = {layer.path for layer in layers}
    cells = [
        layer for layer in recording.of_kind(Kind.ACTIVATION) if layer.path not in known
    ]  # `h @ U.t()` is no layer
    for path, kind in dict.fromkeys((layer.path, layer.type) for layer in cells if layer.call >= REPEATS - 1):
        if _again(recording, path):
            yield from _drawn_on(recording, [layer for layer in cells if (layer.path, layer.type) == (path, kind)])


def excused(recording: Recording, gained: float) -> bool:
    """Whether the same recurrence trains on a copy: at another learning rate it takes `gained` of the loss off, and the script's
    own half as much at most, or it goes on so with a living one. Or whether the training may stand still because its
    rate came to nothing, and no copy tells."""
    again, end = revival(recording), decay(recording, LrDecaysTooFast.low)
    if again is not None:
        return again.gain >= gained
    early = end is not None and end.left >= LrDecaysTooFast.left
    return early or rescue(recording, ("100", "10", "0.1", "0.01"), gained, gained / 2) is not None


def _broke(recording: Recording) -> float:
    """The step from which on the loss was `BROKEN` times its first value, or not finite; infinity where it never was."""
    series = recording.loss
    if series is None or not series.values.size or not series.values[0] > 0:
        return math.inf
    broken = np.flatnonzero(~(series.values < BROKEN * series.values[0]))
    return float(series.steps[broken[0]]) if broken.size else math.inf


def _drawn_on(recording: Recording, calls: list[Layer]) -> Iterator[tuple[Layer, float]]:
    """Of the first calls alone, which are measured: the line is drawn on to the last one."""
    found = profile(calls, lambda call: scale(recording, call, 0, Role.OUTPUT_GRADIENT), REPEATS)
    if found is not None:
        steps = max(_called(recording, calls[0].path), len(found.layers)) - 1
        yield calls[0], -found.total * steps / (len(found.layers) - 1)


def _again(recording: Recording, path: str) -> bool:
    """Whether a module reads each of its matrices several times in a step."""
    graph = recording.graph
    operations = [] if graph is None else [o for o in graph.operations if o.module == path]
    read = Counter(
        i for o in operations for i in o.inputs if graph is not None and graph.values[i].origin == "parameter"
    )
    matrices = [n for i, n in read.items() if graph is not None and len(graph.values[i].shape) > 1]
    return bool(matrices) and min(matrices) >= REPEATS


def _called(recording: Recording, path: str) -> int:
    """How often a module is called in a step: as often as each of its operations was captured."""
    graph = recording.graph
    names = Counter(o.name for o in graph.operations if o.module == path) if graph is not None else Counter()
    return min((count for count in names.values() if count >= REPEATS), default=0)
