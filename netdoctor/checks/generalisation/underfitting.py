"""The model is too small for what it has to learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import constant_loss
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity, Trial, Verdict
from netdoctor.recording import Arm, Recording
from netdoctor.trend import judge


@dataclass(frozen=True)
class Underfitting(Check):
    """A wider copy of the model learns from the same batches what this one cannot.

    What it is: hidden layers with a handful of units: a bottleneck that lets too little through.
    Why it hurts: the loss settles far above what the data allows, however long the training and whatever its rate.
    How it is decided: by experiment, where the training leaves a quarter of a constant prediction's loss or more: two
    copies learn from two thirds of the captured batches with Adam, one with its hidden dense layers made four times
    wider (64 units at least). A warning when the wider one's loss on the other third is at most half of the other's, and
    of what the script's own training ends with.
    When it stays silent: training that leaves little; models that are no better when they are wider; layers of over 256
    units; models without a pair of dense layers with just an activation between; GAN, RL, moving targets.
    Fix: more units in the layers named.
    Sources: Goodfellow et al., Deep Learning, 2016, section 5.2 (capacity); advice A31.
    """

    name = "underfitting"
    arms = frozenset({"width/as it is", "width/wider"})
    explains = frozenset({"loss-not-decreasing", "cannot-overfit-tiny-batch", "label-input-mismatch", "dead-relu"})

    left: float = 0.25  # of a constant prediction's loss (of the first loss, where that is unknown)
    ratio: float = 0.5  # of the held-out loss as it is: twice the width alone gives a few percent

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        narrow, wide = (recording.arms.get(f"width/{name}") for name in ("as it is", "wider"))
        if narrow is None or wide is None or recording.facts.get("moving_target"):
            return
        if narrow.failure or wide.failure:
            yield Abstention(self.name, narrow.failure or wide.failure)
            return
        constant, trend = constant_loss(recording), judge(recording)
        first = float(narrow.losses[0])
        start = constant if np.isfinite(constant) else first
        before, after = min(float(narrow.facts["best"]), trend.end), float(wide.facts["best"])
        if before >= self.left * start and after <= self.ratio * before:
            verdict = Verdict.CURED if after < self.left * start else Verdict.EASED
            yield self._finding(recording, narrow, wide, after / before, verdict)

    def _finding(self, recording: Recording, narrow: Arm, wide: Arm, ratio: float, verdict: Verdict) -> Finding:
        layers = [name for name in str(wide.facts.get("layers", "")).split(",") if name]
        units, wider = float(wide.facts.get("units", 0)), float(wide.facts.get("wider", 0))
        layer = next((x for name in layers for x in recording.layers if x.path == name and x.units == units), None)
        path = layer.path if layer is not None else layers[0] if layers else None
        words = f"held-out loss {narrow.facts['best']:.4g} with {units:.0f} units, {wide.facts['best']:.4g} with {wider:.0f}"
        curves = tuple(map(float, narrow.losses)), tuple(map(float, wide.losses))
        trial = Trial(verdict, *curves, steps=wide.steps, seconds=wide.seconds, says=words)
        return Finding(
            self.name,
            f"the model is too small: {units:.0f} hidden units leave a loss that {wider:.0f} bring down to {100 * ratio:.0f} %",
            Severity.WARNING,
            f"Two copies learned from the same batches with Adam; {words}.",
            Location.at(layer.source if layer is not None else None, path, step=0),
            (Evidence("held-out loss of a wider copy, of that as it is", 100 * ratio, "≤", 100 * self.ratio, "%"),),
            (Fix("widen", "Give the hidden layers more units.", f"nn.Linear(..., {wider:.0f})", Reach.MODEL, trial),),
            Certainty.PROVEN,
            0,
            places=tuple(layers),
            share=1.0,
        )
