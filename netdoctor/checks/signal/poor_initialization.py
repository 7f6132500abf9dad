"""Weights that start far off the scale that their fan and activation ask for, and a signal that shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation
from netdoctor.checks.signal import profile as depth
from netdoctor.checks.signal.initialisation import Scale
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Role, Stat


@dataclass(frozen=True)
class PoorInitialization(Check):
    """Weights start several times larger or smaller than any common scheme would make them, and the signal suffers.

    What it is: for a kept scale a weight needs a standard deviation of about sqrt(gain / fan_in); N(0, 1) is far too large
    for more than a few inputs, N(0, 0.001) too small, a mean that is not zero adds up over all inputs.
    Why it hurts: activations and gradients explode or vanish with depth, units saturate or die, the first loss is huge.
    How it is decided: at step 0 a weight is off when it is 4 times outside of all common schemes (PyTorch's default, LeCun,
    Xavier, He by fan-in or fan-out), and the activations recorded at step 0 must show it: amplified 30 times over the net,
    shrunk to 1e-3 (1e-2 when training fails), or pushed into saturation. Large weights kept in bounds by norms: a warning.
    When it stays silent: pretrained models; embeddings, norms, frozen weights; zero-initialised ends and small heads;
    std 0.02 in transformers and DCGAN, SIREN, whose signal is kept.
    Fix: the right torch.nn.init call for exactly these layers.
    Sources: LeCun et al. 1998; Glorot and Bengio 2010; He et al. 2015; torch.nn.init.
    """

    name = "poor-initialization"
    needs = frozenset({Stat.RMS, Stat.MEAN, Stat.BATCH_STD})
    explains = (
        c.NON_FINITE
        | c.NO_TRAINING
        | c.NO_SIGNAL
        | c.LEARNING_RATE
        | c.EXPLODING
        | c.VANISHING
        | {"recurrent-gradients"}
    )

    factor: float = (
        4.0  # schemes in use differ by up to 2.4 (He to PyTorch's default); 0.02 in width 768 is at the default
    )
    amplified: float = 30.0  # over the whole net: logits of 30 make a first loss of about 30, for 2.3
    exploded: float = 1e3  # the limit of exploding-activations
    shrunk: float = 1e-3  # from input to last hidden layer; PyTorch's default does it in 8 layers, in the band
    shrunk_failing: float = 1e-2  # enough to blame when the loss does not fall
    saturating: float = 4.0  # rms before sigmoid or tanh: most units lie beyond the ±4 where the slope is under 2 %
    most: float = 0.5  # of the weight layers, when norms keep the signal in bounds

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if recording.facts.get("pretrained"):
            return
        scales = initialisation.scales(recording)
        for model in dict.fromkeys(s.layer.model for s in scales):
            own = [s for s in scales if s.layer.model == model]
            large, small = [s for s in own if s.off >= self.factor], [s for s in own[:-1] if s.off <= 1 / self.factor]
            outcome = trend.judge(recording)
            severity = self._of_large(recording, own, large, outcome)
            if severity is not None:
                yield self._finding(recording, own, large, severity, outcome)
            elif small and (severity := self._of_small(recording, own, outcome)) is not None:
                yield self._finding(recording, own, small, severity, outcome)

    def _signal(self, recording: Recording, own: list[Scale]) -> list[float]:
        """The scale of each weight layer's output at step 0, over that of the net's input (as the first weight tells it)."""
        outputs = [depth.scale(recording, s.layer) for s in own]
        start = outputs[0] / own[0].gain if outputs and outputs[0] else math.nan
        return [math.nan if value is None else value / start for value in outputs]

    def _of_large(self, recording: Recording, own: list[Scale], large: list[Scale], t: trend.Trend) -> Severity | None:
        if not large:
            return None
        amplification = float(np.nanmax([*self._signal(recording, own), 0.0]))
        saturated = any(self._saturates(recording, s) for s in large)
        if amplification >= self.exploded:
            return Severity.WARNING if t.learning else Severity.ERROR
        if (amplification >= self.amplified or saturated) and t.kind != "unknown":
            return Severity.ERROR if t.failing else Severity.WARNING
        kept = len(large) >= max(2, self.most * len(own)) and any(
            initialisation.normalised(recording, s.layer) for s in large
        )
        return Severity.WARNING if kept else None

    def _saturates(self, recording: Recording, found: Scale) -> bool:
        bounded = initialisation.activation_after(recording, found.layer) in depth.SQUASHING
        kept = initialisation.normalised(recording, found.layer) is not None
        return bounded and not kept and (depth.scale(recording, found.layer) or 0.0) >= self.saturating

    def _of_small(self, recording: Recording, own: list[Scale], t: trend.Trend) -> Severity | None:
        signal = self._signal(recording, own[:-1])
        left = signal[-1] if signal else math.nan
        if t.failing and left <= self.shrunk_failing:
            return Severity.ERROR
        return Severity.WARNING if left <= self.shrunk else None

    def _finding(
        self, recording: Recording, own: list[Scale], off: list[Scale], severity: Severity, outcome: trend.Trend
    ) -> Finding:
        first, layers = off[0], [s.layer for s in off]
        large, limit = first.off > 1, self.factor if first.off > 1 else 1 / self.factor
        edge = first.high if large else first.low
        ends = [x for x in self._signal(recording, own) if math.isfinite(x)]
        site = recording.parameters[first.layer.weight].site(Role.WEIGHT)
        more = f" and {len(off) - 1} more" if len(off) > 1 else ""
        aside = f", mean {first.mean:.2g}" if abs(first.mean) > first.rms / 2 else ""
        return Finding(
            check=self.name,
            title=f"the weights of {first.layer.name}{more} start {'too large' if large else 'too small'} "
            f"({first.rms:.2g}{aside}; common schemes: {first.low:.2g} to {first.high:.2g})",
            severity=severity,
            explanation=f"With {first.layer.fan_in} inputs per unit {first.layer.name} is {first.off:.2g} times off. Over the "
            f"net the signal is scaled by {ends[-1] if ends else math.nan:.2g} at step 0. "
            + initialisation.outcome_words(outcome),
            location=Location.at(first.layer.source, first.layer.path, step=0),
            evidence=(
                Evidence(
                    f"rms of {first.layer.weight}", first.rms, ">" if large else "<", edge, site=site, stat=Stat.RMS
                ),
                Evidence("times off the common schemes", first.off, "≥" if large else "≤", limit),
            ),
            fixes=(initialisation.fix(recording, layers),),
            first_step=0,
            places=tuple(layer.name for layer in layers),
            share=len(off) / len(own),
        )
