"""What the loss of an untrained model should be, how long a run needs to get there, and how to start closer to it."""

from __future__ import annotations

import math

import numpy as np

from netdoctor.checks.data.harm import constant_loss
from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, Comparison
from netdoctor.checks.signal.initialisation import expression
from netdoctor.finding import Fix, Reach
from netdoctor.recording import Layer, Recording, Series, Stat

_REGRESSIONS = frozenset({"mse", "l1", "huber"})


def expected_loss(recording: Recording, pair: Comparison) -> float:
    """The plain loss of outputs near zero; NaN where it cannot be known."""
    constant, given = constant_loss(recording), len(pair.operation.inputs)
    if math.isnan(constant) or given > 2:  # weights of classes or samples
        return math.nan
    classes = float(recording.facts.get("classes", 0))
    if pair.operation.name == CROSS_ENTROPY:
        return math.log(classes) if classes > 1 else math.nan
    if recording.facts.get("loss_family") in _REGRESSIONS:
        columns = recording.targets[0].columns
        square = float(np.mean(columns.mean**2 + columns.std**2))
        name = pair.operation.name
        return (
            square if name == "mse_loss" else math.sqrt(square) if name == "l1_loss" else min(square, math.sqrt(square))
        )
    return max(constant, math.log(2))


def steps_until(series: Series, level: float) -> int:
    """The steps until a window of three losses first lies below a level; all steps when none does."""
    values = series.values
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(values, min(3, values.size)), axis=1)
    below = np.flatnonzero(smooth < level)
    return int(series.steps[below[0]]) if below.size else int(series.steps[-1]) + 1


def smaller_start(recording: Recording, layer: Layer, factor: float) -> Fix:
    """A smaller weight; where the outputs are off by a constant, another bias."""
    mean, std = (recording.of_layer(layer, stat) for stat in (Stat.MEAN, Stat.STD))
    shifted = mean is not None and std is not None and abs(mean.values[0]) > 2 * std.values[0]
    if not shifted or not layer.bias:
        code = f"with torch.no_grad():\n    {expression(recording, layer.weight)}.mul_({float(f'{factor:.1g}'):g})"
        return Fix("shrink-output", "Start with a smaller output layer.", code, Reach.MODEL)
    target = recording.targets[0].columns.mean if recording.facts.get("loss_family") in _REGRESSIONS else np.zeros(1)
    code = f"torch.nn.init.constant_({expression(recording, layer.bias)}, {float(np.mean(target)):.3g})"
    return Fix("centre-output", "Start with outputs around the targets.", code, Reach.MODEL)
