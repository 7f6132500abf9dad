"""The check `dead-relu`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from netdoctor.check import Check
from netdoctor.checks.data.harm import left
from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.input_independent_output import unread
from netdoctor.checks.units.death import evidence, explanation, fixes, title
from netdoctor.checks.units.liveness import Liveness, examine
from netdoctor.checks.units.window import STALLED, finite_until
from netdoctor.finding import Abstention, Certainty, Finding, Location, Severity
from netdoctor.recording import Kind, Recording, Stat
from netdoctor.trend import Trend, judge


@dataclass(frozen=True)
class DeadRelu(Check):
    """Units of a ReLU that give exactly 0 for every input, and so can never learn again.

    What it is: the input of the rectifier is negative for every sample and position. Its gradient is 0 there, so no
    update reaches the incoming weights, and nothing brings the unit back.
    Why it hurts: the layer works with the units that are left; when most or all are dead, it passes on next to nothing
    (or a constant), and training stops.
    How it is decided: per unit (channel), over every sample and position of the last third of the run (at least 4
    sampled steps and 256 samples, 64 where a whole layer is silent): not one value other than 0. A whole third,
    because a unit that an input shift revives would be seen in it. 50 % of a layer is an error, 20 % a warning where
    training is hurt; where the loss falls all the same, a warning when half of all rectified units are lost and over 2 %
    of a constant prediction's loss is left, which is all that they could add; else advice. Weight gradients of exactly
    0 confirm it. Advice as well where its fixes were tried on a copy in vain: then the units are not missed.
    When it stays silent: sparse but live ReLUs, however many zeros they give, as long as each unit fires for some
    sample; under 20 % of a layer; some units of a model that reads none of its input; GELU, SiLU, LeakyReLU and
    others that pass gradient below 0; short runs.
    Fix: by when they died: at initialisation (bias, He initialisation) or after an update (a lower learning rate); a
    LeakyReLU cannot die.
    Sources: peers.md c1 (SageMaker Debugger's 50 % of units; keras-contrib: never active); Maas et al. 2013; Lu et al.,
    "Dying ReLU and Initialization", 2019; advice A10, A32.
    """

    error_share: float = 0.5  # SageMaker Debugger, TheDeepChecker; half the width is lost
    warning_share: float = 0.2  # pruned or trained nets keep up to 20 % idle units without harm (catalogue)
    goal: float = 0.02  # of the loss of a constant prediction: as near to 0 as trend.AT_CHANCE is to that loss
    min_steps: int = 4  # sampled steps: fewer could all be alike by chance
    min_samples: float = 256.0  # per unit: one that fires for 1 % of the samples is then missed with 8 % probability

    name: ClassVar[str] = "dead-relu"
    needs: ClassVar[frozenset[Stat]] = frozenset(
        {Stat.UNIT_ACTIVE, Stat.UNIT_ZERO_GRADIENT, Stat.SAMPLES, Stat.MEAN, Stat.STD, Stat.RMS}
    )
    suspects: ClassVar[bool] = True
    explains: ClassVar[frozenset[str]] = frozenset({"constant-layer", "no-gradient", "initial-loss"}) | STALLED

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        """One finding with all affected layers; its location is the first one that is graver than a warning, if any."""
        trend = judge(recording)
        found = list(examine(recording, finite_until(recording, trend), self.min_steps, self.min_samples))
        judged = [item for item in found if isinstance(item, Liveness)]
        if found and not judged:
            need = f"{self.min_steps} sampled steps and {self.min_samples:.0f} samples per unit are needed"
            yield Abstention(self.name, f"the run is too short to tell dead units from rare ones: {need}")
        if unread(recording):  # no sample differs from another: units that never fire are not dead, unless all are
            judged = [item for item in judged if item.share == 1]
        sick = [item for item in judged if item.share >= self.warning_share and (self._grave(item) or item.trained)]
        if not sick:
            return
        first = next(filter(self._grave, sick), sick[0])
        yield Finding(
            self.name,
            title(first, len(sick)),
            self._severity(recording, trend, sick, judged),
            explanation(recording, first, sick, trend),
            Location.at(first.layer.source, first.layer.path or None, step=0 if first.from_start else first.died_after),
            evidence(first, self.error_share if self._grave(first) else self.warning_share),
            fixes(recording, first),
            Certainty.INFERRED if first.zero_gradient < 0.5 else Certainty.MEASURED,
            0 if first.from_start else first.died_after,
            tuple(item.layer.name for item in sick),
            first.share,
        )

    def _grave(self, item: Liveness) -> bool:
        return item.share >= self.error_share

    def _severity(self, recording: Recording, trend: Trend, sick: list[Liveness], judged: list[Liveness]) -> Severity:
        """By share; where training works, or the loss could not show the harm, only much that may be missed is a warning."""
        grave = any(map(self._grave, sick))
        aimless = any(recording.facts.get(fact) for fact in ("moving_target", "several_optimizers"))
        cut_short = trend.kind == "non-finite" and not grave  # a NaN ended it before idle units could do harm, or wake
        if outcome.learns(trend) or aimless or cut_short:
            width = sum(layer.units for layer in recording.of_kind(Kind.ACTIVATION))  # of whatever activation
            lost = sum(int(item.dead.sum()) for item in judged) / max(width, sum(len(item.dead) for item in judged))
            missed = lost >= self.error_share and (aimless or left(recording) > self.goal)
            return Severity.WARNING if grave and missed else Severity.ADVICE
        if not grave and not outcome.hurt(trend):
            return Severity.ADVICE  # whether they are missed could not be told
        return Severity.ERROR if grave else Severity.WARNING
