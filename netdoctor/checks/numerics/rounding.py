"""What rounding takes from half-precision weights: of each update, and of the training on a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.checks.training.lr_trials import STEPS, level
from netdoctor.finding import Evidence
from netdoctor.recording import Arm, Recording, Role, SourceLine, Stat

CONTROL, MASTER = "rounding/as it is", "rounding/float32 between the steps"
FURTHER = "loss that float32 weights take off, times that of the script's own"


@dataclass(frozen=True, slots=True)
class Copies:
    """The loss that both copies lost from the same start; `moved`, how far the half-precision weights came, of the others' way."""

    steps: int
    start: float
    own: float
    float32: float
    moved: float
    source: SourceLine | None

    @property
    def times(self) -> float:
        """How many times as far the loss falls with float32 weights."""
        return self.float32 / self.own if self.own > 0 else math.inf

    def worse(self, times: float, gained: float) -> bool:
        """Whether the half-precision weights cost so much: `gained` is of the loss at the start."""
        return self.times >= times and self.float32 - self.own >= gained * abs(self.start)

    @property
    def words(self) -> str:
        """What was seen, as a sentence."""
        ends = f"{self.start - self.own:.4g}, and to {self.start - self.float32:.4g}"
        return (
            f"On a copy {self.steps} steps bring the loss from {self.start:.4g} to {ends} where the optimizer steps on float32 "
            f"copies of the weights: without them they move {100 * self.moved:.0f} % as far."
        )

    def evidence(self, times: float) -> Evidence:
        """The ratio beside its limit."""
        return Evidence(FURTHER, self.times, "≥", times)


def copies(recording: Recording) -> Copies | None:
    """Both arms; None where they did not run, or broke."""
    control, treated = recording.arms.get(CONTROL), recording.arms.get(MASTER)
    if control is None or treated is None or control.failure or treated.failure:
        return None
    steps = min(control.losses.size, treated.losses.size)
    if steps < STEPS or not (np.isfinite(control.losses).all() and np.isfinite(treated.losses).all()):
        return None
    start = float(control.losses[0])
    own, float32 = (start - level(Arm(arm.name, arm.losses[:steps])) for arm in (control, treated))
    moved = float(control.facts.get("moved", math.nan)) / max(float(treated.facts.get("moved", math.nan)), 1e-30)
    file, line, text = (control.facts.get(key, "") for key in ("file", "line", "text"))
    source = SourceLine(str(file), int(float(line)), str(text)) if file else None
    return Copies(steps, start, own, float32, moved, source)


def shares(recording: Recording, late: bool = True) -> Iterator[tuple[str, float]]:
    """Weight matrix → share of its updates that was rounded away: the median over the last (or first) third of the steps that
    have a high rate."""
    rates = recording.scalars.get("lr")
    for name, parameter in recording.parameters.items():
        track = recording.of_parameter(name, Stat.ROUNDED_AWAY, Role.UPDATE)
        if track is None or len(parameter.shape) < 2:
            continue
        moving = np.isfinite(track.values)
        if rates is not None and rates.steps.size:  # at the end of a schedule updates may be as small as they like
            moving &= np.interp(track.steps, rates.steps, rates.values) > rates.values.max() / 2
        third = recording.steps * (2 if late else 1) / 3  # late: the weights have grown by then
        there = moving & ((track.steps >= third) if late else (track.steps < third))
        moving = there if there.any() else moving
        if moving.any() and not math.isnan(middle := float(np.median(track.values[moving]))):
            yield name, middle


def typical(found: dict[str, float], share: float) -> float:
    """What this share of the matrices loses, or more; 0 where there are none."""
    return sorted(found.values())[int(len(found) * (1 - share))] if found else 0.0
