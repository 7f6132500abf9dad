"""What became of the trained model when it went on with a living learning rate, beside going on as it ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netdoctor.finding import Evidence, Trial, Verdict
from netdoctor.recording import Arm, Recording

AS_IT_ENDED, REVIVED = "revival/as it ended", "revival/a third of the highest rate"
FEWEST_STEPS = 40  # of the trial: fewer leave a rate no time to fall, and the noise that it made stays
TOGETHER = 3  # evaluations in a row: the lowest median of so many is how far an arm came


@dataclass(frozen=True, slots=True)
class Revival:
    """Both arms, and the part of the held-out loss that going on with a living rate took off, over going on without one."""

    control: Arm
    treated: Arm
    gain: float

    @property
    def words(self) -> str:
        """What the trial showed, as a sentence."""
        steps, lr, before = self.treated.steps, float(self.treated.facts["lr"]), float(self.treated.losses[0])
        return (
            f"The trained model went on for {steps} steps on a copy: at {lr:.2g}, falling to nothing, the loss on other batches "
            f"came from {before:.4g} to {_best(self.treated):.4g}; with the rate as it ended, to {_best(self.control):.4g}."
        )

    def evidence(self, limit: float) -> Evidence:
        """The gain beside its limit."""
        name = f"held-out loss that {self.treated.steps} more steps with a living rate took off"
        return Evidence(name, 100 * self.gain, "≥", 100 * limit, "%")

    def trial(self, cured: float) -> Trial:
        """Both curves of held-out losses; a cure from a gain of `cured` on."""
        curves = tuple(map(float, self.control.losses)), tuple(map(float, self.treated.losses))
        verdict = Verdict.CURED if self.gain >= cured else Verdict.EASED
        seconds = self.control.seconds + self.treated.seconds
        return Trial(verdict, *curves, self.treated.steps, seconds, self.words)


def revival(recording: Recording) -> Revival | None:
    """The trial; None where it did not run, or one of its arms cannot be read."""
    control, treated = recording.arms.get(AS_IT_ENDED), recording.arms.get(REVIVED)
    if control is None or treated is None or not (_read(control) and _read(treated)):
        return None
    best = _best(control)
    return Revival(control, treated, 1 - _best(treated) / best) if best > 0 else None


def why_not(recording: Recording) -> str:
    """Why there is no trial that decides."""
    arms = [recording.arms[name] for name in (REVIVED, AS_IT_ENDED) if name in recording.arms]
    failed = next((arm.failure for arm in arms if arm.failure), "")
    if revival(recording) is not None:
        return "a copy learned nothing with a living learning rate either, as something else may hold it back"
    return failed or "no experiment went on with a living learning rate"


def _read(arm: Arm) -> bool:
    return not arm.failure and len(arm.losses) > TOGETHER and bool(np.isfinite(arm.losses).all())


def _best(arm: Arm) -> float:
    """How low an arm came, before the few batches that it was trained on were known by heart."""
    rows = np.lib.stride_tricks.sliding_window_view(arm.losses, TOGETHER)
    return float(np.median(rows, axis=1).min())
