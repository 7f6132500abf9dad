"""Gradients that grow on their way to the early layers, or from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, outcome
from netdoctor.checks.signal.growth import Jump, jump
from netdoctor.checks.signal.profile import Profile, gradients
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Role, Stat


@dataclass(frozen=True)
class ExplodingGradients(Check):
    """The gradient grows geometrically from the output to the input, or jumps from step to step and stays there.

    What it is: each layer multiplies the gradient that passes it by more than one; or the loss gets ever steeper.
    Why it hurts: one step throws the early layers (or all of them) far away; the loss jumps, then becomes NaN.
    How it is decided: a line is fitted to log10 of rms(gradient) / rms(weight) over the weight layers in the first
    steps; it must rise towards the input by 1e3. Or the norm of the whole gradient gets 1e2 over the median of all
    steps before and stays there to the end. Both count only when training does not work.
    When it stays silent: training that learns; one spike; a norm that falls from a high start; GAN and RL under 1e4.
    Fix: lower learning rate, clip the norm (1, 5 or 10), mend the initialisation.
    Sources: Pascanu et al. 2013 (clipping); Bengio et al. 1994; Sen 1968 (slope).
    """

    name = "exploding-gradients"
    needs = frozenset({Stat.RMS})
    explains = c.NON_FINITE | c.NO_TRAINING | {"dead-relu", "learning-rate-too-high", "saturated-activation"}

    decades: float = 3.0  # healthy nets stay under 2: a 20-layer batch-normalised MLP shows 1.8, and learns
    layers: int = 4  # three steps between layers: fewer cannot show geometric growth
    jump: float = 1e2  # over the running median; healthy norms vary within 10, from a plateau to learning by 40
    jump_unknown: float = 1e4  # where the loss tells nothing (GAN, RL), whose norms wander by 1e2

    def judge(self, recording: Recording) -> Iterator[Finding]:
        loss = trend.judge(recording)
        if outcome.learns(loss):
            return
        steep = [p for p in gradients(recording, self.layers) if -p.total >= self.decades]
        if steep and outcome.hurt(loss):
            yield self._with_depth(recording, min(steep, key=lambda p: p.total), loss)
            return
        norm, limit = recording.scalars.get("gradient norm"), self.jump if outcome.hurt(loss) else self.jump_unknown
        found = None if norm is None else jump(norm, limit, loss.kind == "non-finite")
        if found is not None:
            yield self._with_steps(recording, found, limit, loss)

    def _with_depth(self, recording: Recording, found: Profile, loss: trend.Trend) -> Finding:
        first, last = found.layers[0], found.layers[-1]
        high, low, total = 10 ** found.decades[0], 10 ** found.decades[-1], 10**-found.total
        site = recording.parameters[first.weight].site(Role.WEIGHT_GRADIENT)
        return Finding(
            check=self.name,
            title=f"the gradient grows by {10**-found.slope:.2g} per layer towards the input, {total:.1e} in all",
            severity=Severity.ERROR,
            explanation=f"Over the first steps rms(gradient) / rms(weight) is {low:.2g} at {last.spoken} and {high:.2g} "
            f"at {first.spoken}. {outcome.words(loss)}",
            location=Location.at(first.source, first.path, step=0),
            evidence=(
                Evidence("gradient to weight, first layer over last (fitted)", total, "≥", 10**self.decades),
                Evidence(f"rms(gradient) / rms(weight) of {first.spoken}", high, ">", low, "", site, Stat.RMS),
            ),
            fixes=(*initialisation.remedies(recording, found.layers, grows=True), initialisation.CLIP),
            first_step=0,
            places=tuple(layer.name for layer in found.layers),
            share=1.0,
        )

    def _with_steps(self, recording: Recording, found: Jump, limit: float, loss: trend.Trend) -> Finding:
        source = recording.optimizers[0].source if recording.optimizers else None
        factor = found.level / found.before
        return Finding(
            check=self.name,
            title=f"the gradient norm jumped by a factor of {factor:.1e} at step {found.step} and stayed there",
            severity=Severity.ERROR,
            explanation=f"Its median was {found.before:.3g} before and {found.level:.3g} from then on. "
            + outcome.words(loss),
            location=Location.at(source, step=found.step),
            evidence=(Evidence("gradient norm", found.level, ">", limit * found.before),),
            fixes=(initialisation.LOWER_LR, initialisation.CLIP),
            first_step=found.step,
        )
