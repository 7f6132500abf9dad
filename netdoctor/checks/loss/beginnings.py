"""What the loss of an untrained model should be, how long a run needs to get there, and how to start closer to it."""

from __future__ import annotations

import math

import numpy as np

from netdoctor.checks.data.harm import constant_loss
from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, Comparison
from netdoctor.checks.signal.initialisation import expression
from netdoctor.checks.signal.profile import at
from netdoctor.finding import Fix, Reach
from netdoctor.recording import Kind, Layer, Recording, Series, Stat

LARGE, SMALL = (
    0.5,
    0.05,
)  # of embeddings: near torch's N(0, 1), and what makes products of 100 columns no larger than a fortieth
_REGRESSIONS = frozenset({"mse", "l1", "huber"})


def expected_loss(recording: Recording, pair: Comparison) -> float:
    """The plain loss of outputs near zero, or of a constant where theirs is nearer to the targets; NaN where it cannot be known."""
    constant, given = constant_loss(recording), len(pair.operation.inputs)
    if math.isnan(constant) or given > 2:  # weights of classes or samples
        return math.nan
    classes = float(recording.facts.get("classes", 0))
    if pair.operation.name == CROSS_ENTROPY:
        return math.log(classes) if classes > 1 else math.nan
    if recording.facts.get("loss_family") in _REGRESSIONS:
        columns, guess = recording.targets[0].columns, pair.prediction.mean
        square = float(np.mean(columns.mean**2 + columns.std**2))
        square = min(square, float(np.mean(columns.std**2 + (columns.mean - guess) ** 2)))  # NaN: not known
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


def smaller_embeddings(recording: Recording, pair: Comparison) -> tuple[Fix, ...]:
    """Smaller embeddings, where a prediction is made of their products: torch starts them at N(0, 1)."""
    behind = {operation.module for operation in pair.graph.ancestors(pair.prediction.index)}
    there = [layer for layer in recording.of_kind(Kind.EMBEDDING) if layer.path in behind and layer.weight]
    large = [
        layer for layer in there if (scale := at(recording.of_parameter(layer.weight, Stat.RMS), 0)) and scale >= LARGE
    ]
    if not large:
        return ()
    lines = dict.fromkeys(f"torch.nn.init.normal_({expression(recording, x.weight)}, std={SMALL:g})" for x in large)
    return (Fix("initialise", "Start with smaller embeddings.", "\n".join(lines), Reach.MODEL),)


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
