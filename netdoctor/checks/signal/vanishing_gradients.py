"""Gradients that die out on their way to the early layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation
from netdoctor.checks.signal.profile import SIGMOIDS, SQUASHING, Profile, gradients, share_of
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Layer, Recording, Role, Stat


@dataclass(frozen=True)
class VanishingGradients(Check):
    """The early layers get a gradient many orders of magnitude below that of the late ones.

    What it is: each layer passes on a fraction of its gradient (a sigmoid at most 1/4), so that depth wears it out.
    Why it hurts: the early layers stand still, and what they feed to the late ones stays random.
    How it is decided: a line is fitted to log10 of rms(gradient) / rms(weight) over the weight layers; towards the input it
    must fall by 1e4 in the first steps (1e3 where sigmoid or tanh is in use), and training must fail, or the fall be there
    still at the last step while the early updates are under 1e-6 of their weights or their gradients under Adam's eps.
    When it stays silent: training that learns and recovers; frozen layers, embeddings, zero-initialised ends; GAN and RL.
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
        worst, outcome = max(found, key=lambda p: p.total), trend.judge(recording)
        starved = self._starved(recording, worst.layers[0])
        lasting = any(p.total >= self._limit(recording, p) for p in gradients(recording, self.layers, early=False))
        if outcome.failing:
            yield self._finding(recording, worst, Severity.ERROR, outcome, starved)
        elif starved and lasting and outcome.learning:
            yield self._finding(recording, worst, Severity.WARNING, outcome, starved)

    def _limit(self, recording: Recording, found: Profile) -> float:
        bounded = share_of(recording, found.layers, SQUASHING) >= self.squashing
        return self.decades_squashing if bounded else self.decades

    def _starved(self, recording: Recording, layer: Layer) -> bool:
        """Whether the layer stands still: by its measured updates, or because its gradient is under the optimizer's eps."""
        updates = recording.update_ratio(layer.weight)
        if updates is not None and float(np.median(updates.values)) < self.update:
            return True
        gradient = recording.of_parameter(layer.weight, Stat.RMS, Role.WEIGHT_GRADIENT)
        return (
            gradient is not None
            and float(np.median(gradient.values)) < recording.parameters[layer.weight].optimizer_eps
        )

    def _finding(
        self, recording: Recording, found: Profile, severity: Severity, outcome: trend.Trend, starved: bool
    ) -> Finding:
        first, last = found.layers[0], found.layers[-1]
        low, high = 10 ** found.decades[0], 10 ** found.decades[-1]
        site = recording.parameters[first.weight].site(Role.WEIGHT_GRADIENT)
        still = f" {first.name} hardly moves: its updates are below any use." if starved else ""
        return Finding(
            check=self.name,
            title=f"the gradient of {first.name} is {10**-found.total:.1e} of that of {last.name}, relative to the weights",
            severity=severity,
            explanation=f"Over the first steps rms(gradient) / rms(weight) is {high:.2g} at {last.name} and {low:.1e} at "
            f"{first.name}, {10**-found.slope:.2g} per layer.{still} {initialisation.outcome_words(outcome)}",
            location=Location.at(first.source, first.path, step=0),
            evidence=(
                Evidence(
                    "gradient to weight, first layer over last (fitted)",
                    10**-found.total,
                    "<",
                    10 ** -self._limit(recording, found),
                ),
                Evidence(f"rms(gradient) / rms(weight) of {first.name}", low, "<", high, site=site, stat=Stat.RMS),
            ),
            fixes=self._fixes(recording, found),
            certainty=Certainty.MEASURED if starved else Certainty.INFERRED,
            first_step=0,
            places=tuple(layer.name for layer in found.layers[: max(1, len(found.layers) // 2)]),
            share=1.0,
        )

    def _fixes(self, recording: Recording, found: Profile) -> tuple[Fix, ...]:
        matched = initialisation.fix(recording, found.layers)
        if share_of(recording, found.layers, SIGMOIDS | SQUASHING) < self.squashing:
            return matched, initialisation.NORMALISE, initialisation.SHORTCUTS
        says = "Use ReLU (with He initialisation) in place of sigmoid or tanh between hidden layers."
        return (
            Fix("relu-for-sigmoid", says, "nn.ReLU()", Reach.MODEL),
            initialisation.NORMALISE,
            initialisation.SHORTCUTS,
        )
