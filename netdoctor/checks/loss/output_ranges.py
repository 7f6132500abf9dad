"""The ranges of activations, and whether an output that went through one can be what its loss asks for."""

from __future__ import annotations

import math
from dataclasses import replace

from netdoctor.checks.loss.comparisons import BCE_LOGITS, CROSS_ENTROPY, POISSON, REGRESSION, Comparison, dimension
from netdoctor.finding import Evidence
from netdoctor.graph import Value
from netdoctor.recording import Recording

# Lowest values of activations that go on below zero and come back. Scores may go through them, regressions may not.
DIPS = {
    "silu": -0.2785, "gelu": -0.17, "mish": -0.3088, "hardswish": -0.375, "elu": -1.0, "celu": -1.0, "selu": -1.7581,
}  # fmt: skip
RANGES = {
    "relu": (0.0, math.inf), "softplus": (0.0, math.inf), "relu6": (0.0, 6.0), "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0), "logsigmoid": (-math.inf, 0.0), "log_softmax": (-math.inf, 0.0),
    **{name: (low, math.inf) for name, low in DIPS.items()},
}  # fmt: skip
OTHERS_SAY = {
    CROSS_ENTROPY: {"softmax", "log_softmax"},
    BCE_LOGITS: {"softmax", "sigmoid", "hardsigmoid", "log_softmax"},
}


def over_the_run(recording: Recording, target: Value) -> Value:
    """A target with the range that it had in all sampled steps: one that a model makes grows beyond that of the first."""
    facts = next((facts for facts in recording.targets if facts.value == target.index and facts.rows), None)
    if facts is None:
        return target
    low, high = min(target.low, float(facts.columns.low.min())), max(target.high, float(facts.columns.high.max()))
    return replace(target, low=low, high=high, std=max(target.std, facts.std))


def conflict(comparison: Comparison, target: Value, outside: float) -> tuple[str, Evidence] | None:
    """What is wrong with the activation that made the prediction, and the number that shows it; None where all is well.

    `target` has the range that is to be reached; `outside` is in standard deviations of it: how far targets may lie past
    the end of the range.
    """
    maker, loss = comparison.maker, comparison.operation
    if maker is None or maker.name not in RANGES or maker.name in OTHERS_SAY.get(loss.name, ()):
        return None
    low, high = RANGES[maker.name]
    if maker.name in DIPS and (loss.name in OTHERS_SAY or maker.attributes.get("alpha", 1.0) != 1.0):
        return None
    if maker.name in DIPS and comparison.prediction.low == comparison.prediction.high:
        return None  # what makes it constant stands before the activation
    if maker.name == "softmax" and _over_one(comparison):
        return "is over a single unit, so it is always 1", Evidence("units of the softmax", 1.0, "<", 2.0)
    if loss.name in OTHERS_SAY:
        lower = Evidence("smallest score", comparison.prediction.low, "≥", low)
        upper = Evidence("largest score", comparison.prediction.high, "≤", high)
        end, other = (lower, "negative ones") if math.isfinite(low) else (upper, "large ones")
        return f"goes into {loss.name}, which needs scores of any size, {other} too", end
    if loss.name == POISSON and low >= 0 and loss.attributes.get("log_input", True):
        says = "is taken for the logarithm of a rate (log_input=True), so that no rate is below 1"
        return says, Evidence("smallest logarithm of a rate", comparison.prediction.low, "≥", low)
    if loss.name not in REGRESSION | {"sub", "rsub"} or target.requires_grad:
        return None
    limit = outside * target.std
    if low - target.low > limit:
        return f"cannot reach the targets below {low:g}", Evidence("smallest target", target.low, "<", low)
    if target.high - high > limit:
        return f"cannot reach the targets above {high:g}", Evidence("largest target", target.high, ">", high)
    return None


def _over_one(comparison: Comparison) -> bool:
    maker = comparison.maker
    shape = comparison.graph.values[maker.outputs[0]].shape if maker is not None and maker.outputs else ()
    dim = 1 if maker is None else dimension(maker, 1)
    return len(shape) > 1 and dim is not None and -len(shape) <= dim < len(shape) and shape[dim] == 1
