"""A signal that no longer depends on the input after some layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, outcome
from netdoctor.checks.signal import profile as depth
from netdoctor.checks.signal.profile import Profile, signal
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Role, Stat


@dataclass(frozen=True)
class VanishingActivations(Check):
    """The part of the signal that depends on the input shrinks geometrically from layer to layer.

    What it is: each weight layer loses a part of its input's variation, so that late layers see the same for all.
    Why it hurts: the output no longer depends on the input and the gradient reaches the early layers as little.
    How it is decided: a line is fitted to log10 of the outputs' standard deviation over the batch (biases keep the
    root mean square up when the signal is gone) over the weight layers at step 0; the total must be 1e-3 or less. It
    counts when training does not work, when it is still so at the last step, or when nothing (1e-6) is left to the end;
    and at 1e-4 when the loss stands still for 15 % of a run, until the signal is back, and less than half of it is lost.
    When it stays silent: training that learns and recovers (PyTorch's default initialisation shrinks a ReLU layer by
    0.4, 12 layers to 2e-5, and Adam mends it), as a codebook does; normalised, residual nets; sigmoids (vanishing-gradients).
    Fix: variance-scaling initialisation for the activation in use; no hand-made shrinking; normalisation; shortcuts.
    Sources: He et al. 2015; Schoenholz et al. 2017 (depth scale of the correlation); Sen 1968 (slope).
    """

    name = "vanishing-activations"
    needs = frozenset({Stat.RMS, Stat.BATCH_STD, Stat.UNIT_ACTIVE})
    explains = (
        c.NO_TRAINING
        | c.NO_SIGNAL
        | {"depth-without-shortcuts", "initial-loss", "learning-rate-too-low", "vanishing-gradients"}
    )

    decades: float = 3.0  # a 6-layer default MLP (2.4) trains with plain SGD; a loss that does not fall must come too
    layers: int = 4  # three steps between layers: fewer cannot show geometric decay
    gone: float = 4.0  # decades where the signal comes back, and yet much of the run was lost until it did
    nothing: float = 1e-6  # of the scale: 10 times float32's resolution, so that the next layers see rounding
    dead: float = 0.9  # share of a layer's units; He-initialised layers start with none, narrow ones with a few
    sigmoids: float = 0.5  # share of activations: then the slope of 1/4 per layer is the cause (vanishing-gradients)

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = [p for p in self._profiles(recording, 0) if -p.total >= self.decades]
        if not found or depth.cut(recording, self.dead):
            return
        worst, loss = min(found, key=lambda p: p.total), trend.judge(recording)
        lost = not loss.learning and max(depth.left(recording, worst, index) for index in (0, -1)) <= self.nothing
        if outcome.hurt(loss) or lost:
            yield self._finding(recording, worst, Severity.ERROR, loss)
        elif loss.learning and (self._stays(recording) or self._late(recording, worst, loss)):
            yield self._finding(recording, worst, Severity.WARNING, loss)

    def _stays(self, recording: Recording) -> bool:
        return any(-p.total >= self.decades for p in self._profiles(recording, -1))

    def _late(self, recording: Recording, worst: Profile, loss: trend.Trend) -> bool:
        return -worst.total > self.gone and outcome.lost_its_beginning(recording, loss)

    def _profiles(self, recording: Recording, index: int) -> Iterator[Profile]:
        for chain in depth.weighted(recording):
            found = depth.profile(chain, partial(signal, recording, index=index), self.layers)
            if found is not None and not self._by_sigmoids(recording, found):
                yield found

    def _by_sigmoids(self, recording: Recording, found: Profile) -> bool:
        if depth.share_of(recording, found.layers, depth.SIGMOIDS) < self.sigmoids:
            return False
        plain = depth.profile(found.layers, partial(depth.scale, recording), self.layers)
        return plain is None or -plain.total < self.decades

    def _finding(self, recording: Recording, found: Profile, severity: Severity, loss: trend.Trend) -> Finding:
        place, last = depth.begin(recording, found, partial(signal, recording)), found.layers[-1]
        first, end, total = 10 ** found.decades[0], 10 ** found.decades[-1], 10**found.total
        site = last.site(Role.OUTPUT)
        return Finding(
            check=self.name,
            title=f"the signal shrinks to {10**found.slope:.2g} per layer, to {total:.1e} over the depth",
            severity=severity,
            explanation=f"At step 0 the outputs vary over the batch by {first:.2g} at {found.layers[0].name} and by "
            f"{end:.1e} at {last.spoken}: what comes out hardly depends on what goes in. {outcome.words(loss)}",
            location=Location.at(place.source, place.path, step=0),
            evidence=(
                Evidence("decay of the signal over the depth", total, "≤", 10**-self.decades),
                Evidence(f"variation of {last.spoken} over the batch", end, "<", first, "", site, Stat.BATCH_STD),
            ),
            fixes=(*initialisation.remedies(recording, found.layers, grows=False), initialisation.NORMALISE),
            first_step=0,
            places=tuple(dict.fromkeys(layer.name for layer in found.layers)),
            share=1.0,
        )
