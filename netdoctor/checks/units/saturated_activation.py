"""The check `saturated-activation`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from netdoctor.check import Check
from netdoctor.checks.signal import outcome
from netdoctor.checks.units import sharp_softmax
from netdoctor.checks.units.saturation import BOUNDS, Saturation, cause, examine, fixes
from netdoctor.checks.units.window import STALLED, finite_until
from netdoctor.finding import Abstention, Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Role, Stat
from netdoctor.trend import judge


@dataclass(frozen=True)
class SaturatedActivation(Check):
    """A sigmoid or tanh inside the net that is stuck at its ends, or a softmax that is one-hot from the start.

    What it is: for most units nearly every sample lies where the function is flat: sigmoid outside of [0.018, 0.982]
    (inputs beyond ±4), |tanh| beyond 0.999 (inputs beyond ±3.8). A softmax of attention: its scores are so large in the
    first step (no 1/sqrt(d), a tiny temperature, large weights) that each row picks one entry.

    Why it hurts: the derivative is next to 0 there, so the layers before get no gradient, and what they pass on is
    little more than a sign.

    How it is decided: over the last third of the run (at least 4 sampled steps and 256 samples per unit), more than
    50 % of the units are saturated for more than 90 % of the samples in every sampled step, and (where both gradients
    were recorded for the same units) the gradient behind the function is under half of what its steepest slope passes.
    A softmax that a layer or product reads: it passes under half of an even one's gradient in the first step, masked keys
    left out; on a copy, scores of standard deviation 1 leave at most half of the loss in as many steps (or lose twice as
    much of it), and far less than the whole run. An error where the loss does not fall, else a warning.

    When it stays silent: gates (multiplied with another tensor), attention, the output that goes to the loss, the last
    layer of a model; where the loss falls well; short runs. A softmax that trains as well as it is, hard by intent (argmax,
    top-k, Gumbel noise), one-hot by its mask, or inside of a fused attention, where scores cannot be read.

    Fix: by what makes the input large: scale of the input or scores, initialisation, or the learning rate; tanh to ReLU.

    Sources: Glorot and Bengio 2010 (saturation in training); Vaswani et al. 2017 (scores over sqrt(d)); peers.md c10, A10, A30-2.
    """

    units: float = 0.5  # "most units": more than half of the layer
    samples: float = 0.9  # of the samples: a unit that leaves its ends for a tenth of them still learns
    slope: float = 0.5  # of the steepest slope: a healthy unit, spread over its range, passes more than half of it
    min_steps: int = 4  # sampled steps, as for dead units
    min_samples: float = 256.0

    name: ClassVar[str] = "saturated-activation"
    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.UNIT_SATURATED, Stat.SAMPLES, Stat.RMS, Stat.MEAN, Stat.STD})
    explains: ClassVar[frozenset[str]] = frozenset({"constant-layer", "no-gradient"}) | STALLED

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        """One finding about the first saturated layer, with all of them as its places."""
        trend = judge(recording)
        sharp = sharp_softmax.finding(self.name, recording, trend)
        if sharp is not None:
            yield sharp
        if outcome.learns(trend) or recording.facts.get("moving_target"):
            return
        found = list(examine(recording, finite_until(recording, trend), self.min_steps, self.min_samples, self.samples))
        if found and all(item is None for item in found):
            need = f"{self.min_steps} sampled steps and {self.min_samples:.0f} samples per unit are needed"
            yield Abstention(self.name, f"the run is too short to tell whether units stay saturated: {need}")
        sick = [item for item in found if item is not None and item.share > self.units and self._flat(item)]
        if not sick:
            return
        first = sick[0]
        low, high = BOUNDS[first.function]
        when = "from the start" if first.since == 0 else f"since step {first.since}"
        yield Finding(
            self.name,
            f"{100 * first.share:.0f} % of the units of {first.layer.spoken} are saturated {when}",
            Severity.ERROR if outcome.hurt(trend) else Severity.WARNING,
            f"For more than {100 * self.samples:.0f} % of the samples they lie outside of [{low}, {high}], where "
            f"{first.function} is flat and passes no gradient. {cause(recording, first)} {outcome.words(trend)}",
            Location.at(first.layer.source, first.layer.path or None, step=first.since),
            self._evidence(first),
            fixes(recording, first),
            first_step=first.since,
            places=tuple(item.layer.name for item in sick),
            share=first.share,
        )

    def _flat(self, item: Saturation) -> bool:
        return not item.passed > self.slope  # NaN: not recorded, so it cannot deny

    def _evidence(self, item: Saturation) -> tuple[Evidence, ...]:
        site, units = item.layer.site(Role.OUTPUT), f"saturated units of {item.layer.spoken}"
        first = Evidence(units, 100 * item.share, ">", 100 * self.units, "%", site, Stat.UNIT_SATURATED)
        if item.passed != item.passed:
            return (first,)
        return first, Evidence("gradient passed, of the steepest slope", 100 * item.passed, "≤", 100 * self.slope, "%")
