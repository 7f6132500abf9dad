"""An activation on the output that the loss does not expect, or that cannot reach the targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import (
    BCE_LOGITS,
    CROSS_ENTROPY,
    REGRESSION,
    Comparison,
    comparisons,
    differences,
)
from netdoctor.checks.loss.comparisons import dimension, line, place
from netdoctor.checks.loss.lines import without
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.checks.signal import outcome
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording
from netdoctor.trend import judge

RANGES = {
    "relu": (0.0, math.inf), "softplus": (0.0, math.inf), "relu6": (0.0, 6.0), "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0), "logsigmoid": (-math.inf, 0.0), "log_softmax": (-math.inf, 0.0),
}  # fmt: skip
OTHERS_SAY = {
    CROSS_ENTROPY: {"softmax", "log_softmax"},
    BCE_LOGITS: {"softmax", "sigmoid", "hardsigmoid", "log_softmax"},
}


@dataclass(frozen=True)
class OutputActivation(Check):
    """An activation after the last layer keeps the output away from what the loss asks for.

    What it is: a ReLU, tanh or sigmoid on the scores of a loss that expects any number (cross_entropy, BCE with
    logits); an output range that does not hold the targets of a regression; a softmax over a single unit, always 1.
    Why it hurts: the targets cannot be reached; a ReLU that ends below 0 has no gradient at all.
    How it is decided: on the captured step. The activation made what the loss is given, with nothing but reshapes in
    between; for a regression, targets lie outside of its range by more than a quarter of their standard deviation.
    When it stays silent: an activation whose range holds the targets; sigmoid before BCELoss; activations inside of the
    model. A ReLU before cross_entropy in a training that learns is a warning.
    Fix: leave it out.
    Sources: UMLAUT and advice B3 (no activation on the output layer).
    """

    name = "output-activation"
    explains = EVERYTHING

    outside: float = 0.25  # standard deviations of the target: a few noisy targets past the end do no harm

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in (*comparisons(recording), *differences(recording)):
            reason = self._reason(comparison)
            if reason is not None and comparison.prediction.requires_grad:
                yield self._finding(recording, comparison, *reason)

    def _reason(self, comparison: Comparison) -> tuple[str, Evidence] | None:
        """What is wrong, and the number that shows it."""
        maker, loss, target = comparison.maker, comparison.operation, comparison.target
        if maker is None or maker.name not in RANGES or maker.name in OTHERS_SAY.get(loss.name, ()):
            return None
        low, high = RANGES[maker.name]
        if maker.name == "softmax" and _over_one(comparison):
            return "is over a single unit, so it is always 1", Evidence("units of the softmax", 1.0, "<", 2.0)
        if loss.name in OTHERS_SAY:
            bound = Evidence("smallest score", comparison.prediction.low, "≥", low)
            upper = Evidence("largest score", comparison.prediction.high, "≤", high)
            return f"goes into {loss.name}, which expects any number", bound if math.isfinite(low) else upper
        if loss.name not in REGRESSION | {"sub", "rsub"} or target.requires_grad:
            return None
        limit = self.outside * target.std
        if low - target.low > limit:
            return f"cannot reach the targets below {low:g}", Evidence("smallest target", target.low, "<", low)
        if target.high - high > limit:
            return f"cannot reach the targets above {high:g}", Evidence("largest target", target.high, ">", high)
        return None

    def _finding(self, recording: Recording, comparison: Comparison, reason: str, evidence: Evidence) -> Finding:
        maker = comparison.maker
        assert maker is not None
        source = line(recording, maker)
        low, high = RANGES[maker.name]
        mild = maker.name in {"relu", "softplus"} and comparison.operation.name in OTHERS_SAY
        learns = mild and outcome.learns(judge(recording))
        return Finding(
            self.name,
            f"{maker.name} on the output, in {place(maker)}, {reason}",
            Severity.WARNING if learns else Severity.ERROR,
            f"{maker.name} gives numbers between {low:g} and {high:g}; here {comparison.prediction.low:.3g} to "
            f"{comparison.prediction.high:.3g}, against targets from {comparison.target.low:.3g} to "
            f"{comparison.target.high:.3g}.",
            Location.at(source, maker.module or None, maker.name, step=0),
            (evidence,),
            (Fix("remove-activation", "Leave the last activation out.", without(source, maker.name), Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def _over_one(comparison: Comparison) -> bool:
    maker = comparison.maker
    shape = comparison.graph.values[maker.outputs[0]].shape if maker is not None and maker.outputs else ()
    dim = 1 if maker is None else dimension(maker, 1)
    return len(shape) > 1 and dim is not None and -len(shape) <= dim < len(shape) and shape[dim] == 1
