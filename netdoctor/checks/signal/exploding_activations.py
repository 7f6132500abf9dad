"""Activations that grow geometrically with depth, or without bound while training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, outcome
from netdoctor.checks.signal.growth import over_steps
from netdoctor.checks.signal.profile import Profile, at, begin, profile, scale, weighted
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Layer, Recording, Role, Stat


@dataclass(frozen=True)
class ExplodingActivations(Check):
    """The signal grows geometrically from layer to layer, or from step to step.

    What it is: each weight layer multiplies the scale of its input, so that a factor of 3 per layer is 1e5 after ten.
    Why it hurts: outputs, losses and gradients become huge, then overflow; no learning rate suits all layers.
    How it is decided: a line is fitted to log10 of the activations' root mean square over the weight layers at step
    0; the total must be 1e3 with most neighbours growing. Or a hidden layer's scale grows over the steps, without
    end, by 1e3, while training does not work.
    When it stays silent: normalised and residual nets whose scale stays; large but constant scales; one jump.
    Fix: variance-scaling initialisation for the activation in use; scale sums and residual branches; normalise.
    Sources: He et al. 2015 (variance per layer); Zhang et al. 2019 (Fixup: residual branches); Sen 1968 (slope).
    """

    name = "exploding-activations"
    needs = frozenset({Stat.RMS})
    explains = c.NON_FINITE | c.NO_TRAINING | c.NO_SIGNAL | {"exploding-gradients", "learning-rate-too-high"}

    decades: float = 3.0  # 1e3 over the whole depth: He-initialised chains of 20 layers and default nets stay under 10
    layers: int = 4  # three steps between layers: fewer cannot show geometric growth
    growth: float = 1e3  # over the steps; healthy hidden layers were seen to grow by up to 30 from a default start

    def judge(self, recording: Recording) -> Iterator[Finding]:
        value = partial(scale, recording)
        found = [p for chain in weighted(recording) if (p := profile(chain, value, self.layers)) is not None]
        steep, loss = [p for p in found if p.total >= self.decades], trend.judge(recording)
        if steep:
            yield self._with_depth(recording, max(steep, key=lambda p: p.total), loss)
        elif not outcome.learns(loss):
            hidden = [layer for chain in weighted(recording) for layer in chain[:-1]]
            growing = [(layer, g) for layer in hidden if (g := over_steps(recording, layer)) >= self.growth]
            if growing:
                yield self._with_steps(recording, [layer for layer, _ in growing], growing[0][1])

    def _with_depth(self, recording: Recording, found: Profile, loss: trend.Trend) -> Finding:
        place, total = begin(recording, found, partial(scale, recording)), 10**found.total
        low, high = 10 ** found.decades[0], 10 ** found.decades[-1]
        return Finding(
            check=self.name,
            title=f"activations grow by a factor of {10**found.slope:.2g} per layer, {total:.1e} over the depth",
            severity=Severity.WARNING if outcome.learns(loss) else Severity.ERROR,
            explanation=f"At step 0 the root mean square of the activations is {low:.2g} at {found.layers[0].name} and "
            f"{high:.2g} at {found.layers[-1].name}. {outcome.words(loss)}",
            location=Location.at(place.source, place.path, step=0),
            evidence=(
                Evidence("growth of the activations over the depth", total, "≥", 10**self.decades),
                self._evidence(found.layers[-1], high, low),
            ),
            fixes=initialisation.remedies(recording, found.layers, grows=True),
            first_step=0,
            places=tuple(dict.fromkeys(layer.name for layer in found.layers)),
            share=1.0,
        )

    def _with_steps(self, recording: Recording, layers: list[Layer], growth: float) -> Finding:
        first = layers[0]
        track = recording.of_layer(first, Stat.RMS)
        start = max(at(track, 0) or 0.0, 1.0)
        over = [] if track is None else track.steps[track.values > self.growth * start].tolist()
        step = max([2, *over[:1]])  # what one update does is a jump: the rate's, not a growth
        return Finding(
            check=self.name,
            title=f"the activations of {first.spoken} grew by a factor of {growth:.1e} while training and still grow",
            severity=Severity.ERROR,
            explanation=f"{len(layers)} hidden layers grow from step to step without an end.",
            location=Location.at(first.source, first.path),
            evidence=(self._evidence(first, growth * start, self.growth * start),),
            fixes=(initialisation.LOWER_LR, initialisation.CLIP),
            first_step=step,
            places=tuple(layer.name for layer in layers),
        )

    def _evidence(self, layer: Layer, measured: float, limit: float) -> Evidence:
        quantity = f"root mean square of {layer.spoken}'s output"
        return Evidence(quantity, measured, ">", limit, site=layer.site(Role.OUTPUT), stat=Stat.RMS)
