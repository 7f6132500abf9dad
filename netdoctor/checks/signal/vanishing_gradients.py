"""Gradients that die out on their way to the early layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, outcome
from netdoctor.checks.signal.profile import SQUASHING, Profile, gradients, share_of, starved
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Severity
from netdoctor.recording import Recording, Role, Stat


@dataclass(frozen=True)
class VanishingGradients(Check):
    """The early layers get a gradient many orders of magnitude below that of the late ones.

    What it is: each layer passes on a fraction of its gradient (a sigmoid at most 1/4), so that depth wears it out.
    Why it hurts: the early layers stand still, and what they feed to the late ones stays random.
    How it is decided: a line is fitted to log10 of rms(gradient) / rms(weight) over the weight layers; towards the
    input it must fall by 1e4 in the first steps (1e3 where sigmoid or tanh is in use). Training must not work, or the
    fall be there still in the last steps while the first layer's updates are under 1e-6 of its weights, or its
    gradient under the optimizer's eps.
    When it stays silent: training that learns and recovers; frozen layers, embeddings, zero-initialised ends.
    Fix: ReLU-like activations for sigmoid and tanh, matched initialisation, normalisation, shortcuts.
    Sources: Bengio et al. 1994; Glorot and Bengio 2010; He et al. 2016 (shortcuts); Sen 1968 (slope).
    """

    name = "vanishing-gradients"
    needs = frozenset({Stat.RMS})
    explains = c.NO_TRAINING | c.NO_SIGNAL | {"depth-without-shortcuts", "learning-rate-too-low"}

    decades: float = 4.0  # a default 8-layer ReLU MLP (1.9) and a 12-layer one with Adam (3.5) train
    decades_squashing: float = 3.0  # with sigmoid or tanh the cause is at hand; a 3-layer sigmoid net (2.5) trains
    layers: int = 4  # three steps between layers: fewer cannot show geometric decay
    update: float = 1e-6  # of the weight per step: a million steps to change it by itself (healthy: 1e-3)
    squashing: float = 0.5  # share of activations that are bounded

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = [p for p in gradients(recording, self.layers) if p.total >= self._limit(recording, p)]
        if not found:
            return
        worst, loss = max(found, key=lambda p: p.total), trend.judge(recording)
        lasting = any(p.total >= self._limit(recording, p) for p in gradients(recording, self.layers, early=False))
        if outcome.hurt(loss):
            yield self._finding(recording, worst, Severity.ERROR, loss)
        elif lasting and loss.learning and starved(recording, worst.layers[0], self.update):
            yield self._finding(recording, worst, Severity.WARNING, loss)

    def _limit(self, recording: Recording, found: Profile) -> float:
        bounded = share_of(recording, found.layers, SQUASHING) >= self.squashing
        return self.decades_squashing if bounded else self.decades

    def _finding(self, recording: Recording, found: Profile, severity: Severity, loss: trend.Trend) -> Finding:
        first, last, total = found.layers[0], found.layers[-1], 10**-found.total
        low, high, limit = 10 ** found.decades[0], 10 ** found.decades[-1], 10 ** -self._limit(recording, found)
        site, still = (
            recording.parameters[first.weight].site(Role.WEIGHT_GRADIENT),
            starved(recording, first, self.update),
        )
        return Finding(
            check=self.name,
            title=f"the gradient of {first.spoken} is {total:.1e} of that of {last.spoken}, relative to the weights",
            severity=severity,
            explanation=f"Over the first steps rms(gradient) / rms(weight) is {high:.2g} at {last.spoken} and {low:.1e} "
            f"at {first.spoken}.{' Its updates are too small to move it.' if still else ''} {outcome.words(loss)}",
            location=Location.at(first.source, first.path, step=0),
            evidence=(
                Evidence("gradient to weight, first layer over last (fitted)", total, "≤", limit),
                Evidence(f"rms(gradient) / rms(weight) of {first.spoken}", low, "<", high, "", site, Stat.RMS),
            ),
            fixes=self._fixes(recording, found),
            certainty=Certainty.MEASURED if still else Certainty.INFERRED,
            first_step=0,
            places=tuple(layer.name for layer in found.layers[: max(1, len(found.layers) // 2)]),
            share=1.0,
        )

    def _fixes(self, recording: Recording, found: Profile) -> tuple[Fix, ...]:
        bounded = share_of(recording, found.layers, SQUASHING) >= self.squashing
        first = initialisation.RELU if bounded else initialisation.fix(recording, found.layers)
        return first, initialisation.NORMALISE, initialisation.SHORTCUTS
