"""Batch normalisation that hides a poor initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, outcome
from netdoctor.checks.signal.initialisation import Scale
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Location, Severity
from netdoctor.recording import Arm, Recording, Role, Stat

_WITH, _BYPASSED = "batchnorm/with", "batchnorm/bypassed"
_MATCHED = "batchnorm/bypassed, matched initialisation"
_OWN = {"batchnorm-drift", "poor-initialization", "train-mode-in-eval"}


@dataclass(frozen=True)
class BatchnormMasking(Check):
    """Without its batch normalisation the signal explodes or dies: the layers before it start at a wrong scale.

    What it is: BatchNorm rescales whatever comes, so that weights of any scale look fine, layer by layer.
    Why it hurts: the gradient is divided by the scale that BatchNorm removes: large weights hardly move, small ones
    jump. Small batches, evaluation with running statistics, and the layers without a norm meet the true scale.
    How it is decided: on a copy each BatchNorm is replaced by its scale and shift. The signal, forward or backward,
    must then be non-finite or change by 1e3 over the depth, and weights before a BatchNorm be 4 times off all schemes.
    When it stays silent: PyTorch's default, He and Xavier initialisation, whose mild shrinkage is nobody's error;
    small weights (DCGAN's 0.02) in training that learns, unless the signal falls by 1e6; pretrained models.
    Fix: the matched initialisation of exactly these layers; then keep the BatchNorm.
    Sources: Ioffe and Szegedy 2015; van Laarhoven 2017 (learning rate over squared weight norm); He et al. 2015.
    """

    name = "batchnorm-masking"
    needs = frozenset({Stat.RMS, Stat.MEAN})
    explains = c.NON_FINITE | c.NO_TRAINING | c.NO_SIGNAL | c.LEARNING_RATE | c.EXPLODING | c.VANISHING | _OWN
    arms = frozenset({_WITH, _BYPASSED, _MATCHED})

    factor: float = 4.0  # as poor-initialization: common schemes differ by up to 2.4
    decades: float = 3.0  # as exploding-activations; 6 default ReLU layers lose 2.4, 6 He-initialised ones under 1
    decades_small: float = 6.0  # small weights that BatchNorm rescues harmlessly: only when nothing else would pass

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        own = [s for s in initialisation.scales(recording) if self._before_batchnorm(recording, s)]
        off = [s for s in own if s.off >= self.factor or s.off <= 1 / self.factor]
        arm = recording.arms.get(_BYPASSED)
        if not off or recording.facts.get("pretrained"):
            return
        if arm is None or arm.failure:
            yield Abstention(self.name, arm.failure if arm else "no experiment bypassed BatchNorm")
            return
        loss = trend.judge(recording)
        small = all(s.off < 1 for s in off)
        limit = self.decades_small if small and not outcome.hurt(loss) else self.decades
        if not _flag(arm, "finite") or self._decades(arm) >= limit:
            yield self._finding(recording, arm, off, len(own), loss, limit)

    def _before_batchnorm(self, recording: Recording, found: Scale) -> bool:
        norm = initialisation.normalised(recording, found.layer)
        return norm is not None and "batch" in norm.type.lower()

    def _decades(self, arm: Arm) -> float:
        return max(abs(float(arm.facts.get(f"{way}_decades", 0.0))) for way in ("forward", "backward"))

    def _finding(
        self, recording: Recording, arm: Arm, off: list[Scale], looked: int, loss: trend.Trend, limit: float
    ) -> Finding:
        first, finite, decades = off[0], _flag(arm, "finite"), self._decades(arm)
        shrinks = finite and float(arm.facts.get("forward_decades", 0.0)) < 0
        doing = f"{'shrinks' if shrinks else 'grows'} by 1e{decades:.0f}" if finite else "becomes NaN or Inf"
        matched = recording.arms.get(_MATCHED)
        proven = (
            matched is not None and not matched.failure and _flag(matched, "finite") and self._decades(matched) < limit
        )
        mended = " With a matched initialisation it stays in bounds without BatchNorm." if proven else ""
        size = "large" if first.off > 1 else "small"
        site = recording.parameters[first.layer.weight].site(Role.WEIGHT)
        return Finding(
            check=self.name,
            title=f"BatchNorm hides too {size} initial weights: without it the signal {doing} over the depth",
            severity=Severity.ERROR if outcome.hurt(loss) else Severity.WARNING,
            explanation=f"{len(off)} of {looked} layers before a BatchNorm start off scale; "
            f"{initialisation.described(first)}.{mended} {outcome.words(loss)}",
            location=Location.at(first.layer.source, first.layer.path, step=0),
            evidence=(
                Evidence("signal's change over the depth, BatchNorm bypassed", decades, "≥", limit, "decades"),
                Evidence(f"rms of {first.layer.weight}", first.rms, *initialisation.edge(first), "", site, Stat.RMS),
            ),
            fixes=(initialisation.fix(recording, [s.layer for s in off]),),
            certainty=Certainty.PROVEN if proven else Certainty.MEASURED,
            first_step=0,
            places=tuple(s.layer.name for s in off),
            share=len(off) / max(1, looked),
        )


def _flag(arm: Arm, name: str) -> bool:
    return bool(arm.facts.get(name, True))
