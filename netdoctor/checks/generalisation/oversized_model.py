"""The model has far more parameters than the data has numbers, and does worse on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.generalisation.curves import curves
from netdoctor.finding import Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class OversizedModel(Check):
    """There are a hundred parameters and more per target, and the held-out loss is far above that of the training.

    What it is: a large network on a small data set.
    Why it hurts: it learns the samples by heart. Large models can generalise well, so size alone is no fault.
    How it is decided: the trained parameters are at least 100 times the targets of all different training batches seen,
    and at the end the held-out loss of the script's own evaluation is at least 3 times the training loss.
    When it stays silent: no evaluation whose loss is that of the training; data that is drawn anew; loaded weights.
    Advice only.
    Fix: fewer units, weight decay, more data.
    Sources: Goodfellow et al., Deep Learning, 2016, section 5.2; advice C9, A18.
    """

    name = "oversized-model"

    parameters: float = 100.0  # per target: deep networks with ten per sample are usual and generalise
    gap: float = 3.0  # held-out over training loss: both measured in the script's own unit

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if recording.facts.get("pretrained") or recording.loss is None or not recording.targets:
            return
        number = sum(prod(p.shape) for p in recording.parameters.values() if p.requires_grad)
        target = recording.targets[0]
        repeated = len(set(target.batches)) == 1 and len(target.batches) > 1
        if not repeated:  # only where the whole data set is one batch its size is known
            return
        ratio = number / max(1, prod(target.shape))
        trained = float(np.median(recording.loss.values[-max(3, len(recording.loss.values) // 10) :]))
        for curve in curves(recording):
            held = float(np.median(curve.losses[-3:])) if len(curve.losses) else np.nan
            if ratio >= self.parameters and held >= self.gap * trained > 0:
                yield Finding(
                    self.name,
                    f"{number:,} parameters for {prod(target.shape):,} targets, and a held-out loss {held / trained:.2g} times "
                    "that of the training",
                    Severity.ADVICE,
                    f"Held-out loss {held:.4g}, training loss {trained:.4g} at the end.",
                    evidence=(
                        Evidence("parameters per target", ratio, "≥", self.parameters),
                        Evidence("held-out over training loss", held / trained, "≥", self.gap),
                    ),
                    fixes=(Fix("smaller-model", "Fewer units, or weight decay.", "", Reach.MODEL),),
                    share=1.0,
                )
                return
