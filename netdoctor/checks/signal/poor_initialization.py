"""Weights that start far off the scale that their fan and activation ask for, and a signal that shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, outcome, starts
from netdoctor.checks.signal.initialisation import Scale
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Role, Stat


@dataclass(frozen=True)
class PoorInitialization(Check):
    """Weights start several times larger or smaller than any common scheme would make them, and the signal suffers.

    What it is: for a kept scale a weight needs a standard deviation of about gain / sqrt(fan_in); N(0, 1) is far too
    large for more than a few inputs, N(0, 0.001) too small, and a mean that is not zero adds up over all inputs.
    Why it hurts: signal and gradients explode or vanish with depth, units saturate or die, the first loss is huge.
    How it is decided: at step 0 a weight is off when it is 4 times outside of all common schemes (PyTorch's default,
    LeCun, Xavier, He by fan-in or fan-out), and the activations at step 0 must show it: amplified 30 times over the
    net, shrunk to 1e-3 (1e-2 when training does not work), or 4 and more before a sigmoid or tanh. Most weights too
    large, but kept in bounds by norms, are a warning.
    When it stays silent: pretrained models; embeddings, norms, frozen weights; zero-initialised ends, small heads;
    std 0.02 in transformers and DCGAN, and SIREN, whose signal is kept.
    Fix: the right torch.nn.init call for exactly these layers.
    Sources: LeCun et al. 1998; Glorot and Bengio 2010; He et al. 2015; torch.nn.init.
    """

    name = "poor-initialization"
    needs = frozenset({Stat.RMS, Stat.MEAN})
    explains = (
        c.NON_FINITE
        | c.NO_TRAINING
        | c.NO_SIGNAL
        | c.LEARNING_RATE
        | c.EXPLODING
        | c.VANISHING
        | {"recurrent-gradients"}
    )

    factor: float = 4.0  # schemes in use differ by up to 2.4 (He to PyTorch's default)
    amplified: float = 30.0  # over the whole net: logits of 30 make a first loss of about 30, for 2.3
    exploded: float = 1e3  # the limit of exploding-activations
    shrunk: float = 1e-3  # from input to last hidden layer; PyTorch's default does it in 8 layers, in the band
    shrunk_failing: float = 1e-2  # enough to blame when the loss does not fall
    saturating: float = 4.0  # rms before sigmoid or tanh: many units lie beyond the ±4 where the slope is under 2 %
    most: float = 0.5  # share of the weight layers, when norms keep the signal in bounds

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if recording.facts.get("pretrained"):
            return
        scales, loss = initialisation.scales(recording), trend.judge(recording)
        shares = (self.shrunk, self.shrunk_failing, self.saturating, self.most)
        limits = starts.Limits(self.amplified, self.exploded, *shares)
        for model in dict.fromkeys(s.layer.model for s in scales):
            own = [s for s in scales if s.layer.model == model]
            large = [s for s in own if s.off >= self.factor]
            small = [s for s in own[:-1] if s.off <= 1 / self.factor]
            if (severity := starts.of_large(recording, own, large, loss, limits)) is not None:
                yield self._finding(recording, own, large, severity, loss)
            elif small and (severity := starts.of_small(recording, own, loss, limits)) is not None:
                yield self._finding(recording, own, small, severity, loss)

    def _finding(
        self, recording: Recording, own: Sequence[Scale], off: Sequence[Scale], severity: Severity, loss: trend.Trend
    ) -> Finding:
        first, layer = off[0], off[0].layer
        limit = self.factor if first.off > 1 else 1 / self.factor
        site = recording.parameters[layer.weight].site(Role.WEIGHT)
        ends = [x for x in starts.signal(recording, own) if not math.isnan(x)]
        scaled = f" Over the net the signal is scaled by {ends[-1]:.2g} at step 0." if ends else ""
        return Finding(
            check=self.name,
            title=f"{initialisation.described(first)}{f' ({len(off)} layers alike)' if len(off) > 1 else ''}",
            severity=severity,
            explanation=f"{layer.spoken} has {layer.fan_in} inputs per unit.{scaled} {outcome.words(loss)}",
            location=Location.at(layer.source, layer.path, step=0),
            evidence=(
                Evidence("scale over that of common schemes", first.off, "≥" if first.off > 1 else "≤", limit),
                Evidence(f"rms of {layer.weight}", first.rms, *initialisation.edge(first), "", site, Stat.RMS),
            ),
            fixes=(initialisation.fix(recording, [s.layer for s in off]),),
            first_step=0,
            places=tuple(s.layer.name for s in off),
            share=len(off) / len(own),
        )
