"""BatchNorms that were frozen on the way, and whose running statistics go on moving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netdoctor.checks.structure.gradients import listed
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Measured, Reach, Severity, Trial, Verdict
from netdoctor.recording import Event, Recording

KIND = "frozen norm"  # of the events; their value is how far the statistics moved
KEPT = "final/kept statistics"
_CODE = """for module in {part}.modules():
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.eval()  # after every model.train()"""


def moved(recording: Recording, limit: float) -> list[Event]:
    """The norms whose outputs in evaluation mode changed by `limit` or more for values like those of before."""
    return [event for event in recording.events if event.kind == KIND and event.value >= limit]


@dataclass(frozen=True, slots=True)
class Suffers:
    """What the statistics do to the task of before: mean losses on the batches captured then, in evaluation mode."""

    now: float
    kept: float  # with the statistics of the moment in which the norms were frozen
    start: float  # the training's first loss

    def clearly(self, times: float, part: float) -> bool:
        """Whether the loss is `times` that with the kept statistics, and lost `part` of what training had gained with them."""
        rise = self.now - self.kept
        return not np.isfinite(self.now) or rise >= max((times - 1) * self.kept, part * (self.start - self.kept), 1e-9)


def drifts(check: str, recording: Recording, norms: list[Event], limit: float, times: float, part: float) -> Finding:
    """What `frozen-parameter-moves` says of them: a warning, unless it was measured that the task of before does not suffer."""
    worst, paths, suffers = (
        max(norms, key=lambda event: event.value),
        [event.detail for event in norms],
        _asked(recording),
    )
    hurt = suffers is not None and suffers.clearly(times, part)
    layer = recording.layer_at(worst.detail)
    one = len(paths) == 1
    return Finding(
        check,
        f"{listed(paths)} {'is' if one else 'are'} frozen, and {'its' if one else 'their'} running statistics go on moving",
        Severity.WARNING if suffers is None or hurt else Severity.ADVICE,
        f"Freezing stops gradients only: in training mode BatchNorm follows the new batches. {_words(suffers)}",
        Location.at(None if layer is None else layer.source, worst.detail, step=worst.step),
        (Evidence("change of what it gives, in standard deviations", worst.value, "≥", limit),),
        (_fix(paths, suffers if hurt else None),),
        Certainty.PROVEN if hurt else Certainty.MEASURED,
        first_step=min(event.step for event in norms),
        places=tuple(paths),
        share=len(paths) / max(1, len(recording.layers)),
    )


def _fix(paths: list[str], cured: Suffers | None) -> Fix:
    trial = None
    if cured is not None:
        measured = Measured("loss on the batches of before, in evaluation mode", cured.now, cured.kept)
        trial = Trial(Verdict.CURED, says="the statistics of when it was frozen", measured=measured)
    says = "Keep the norms of what is frozen in evaluation mode. Where they are to adapt to the new data, leave it."
    return Fix("keep-statistics", says, _CODE.format(part=_common(paths) or "model"), Reach.RUN, trial)


def _words(suffers: Suffers | None) -> str:
    if suffers is None:
        return "What was trained with it before may no longer fit."
    with_it = f"On the batches of before, in evaluation mode, the model has a loss of {suffers.now:.4g}"
    return f"{with_it}; with the statistics of when it was frozen, {suffers.kept:.4g}."


def _asked(recording: Recording) -> Suffers | None:
    arms = [recording.arms.get(name) for name in ("final/evaluation", KEPT)]
    if any(arm is None or arm.failure for arm in arms):
        return None
    now, kept = (arm.losses for arm in arms if arm is not None)
    number = min(len(now), len(kept))
    first = min(
        (series for series in recording.losses.values() if series.values.size),
        key=lambda s: int(s.steps[0]),
        default=None,
    )
    if not number or first is None:
        return None
    return Suffers(float(np.mean(now[:number])), float(np.mean(kept[:number])), float(first.values[0]))


def _common(paths: list[str]) -> str:
    """The innermost module that holds them all."""
    parts = [path.split(".")[:-1] for path in paths]
    same = [names[0] for names in zip(*parts, strict=False) if len(set(names)) == 1]
    return ".".join(same)
