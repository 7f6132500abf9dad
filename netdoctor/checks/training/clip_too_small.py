"""The check `clip-too-small`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.training.optimizer_line import first_source, with_limit
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Array, Recording, Role, Series, Stat, shared


@dataclass(frozen=True)
class ClipTooSmall(Check):
    """Gradients are clipped to a small part of their norm in nearly every step, and training crawls.

    What it is: a threshold that is meant for rare spikes lies far under the usual norm of the gradient.
    Why it hurts: every step is divided by the same large factor, which acts as a learning rate as many times lower.
    How it is decided: the recorded norms before clipping exceed the threshold by more than 10 times in 90 % of at
    least 30 steps, and the loss does not fall, or lost little. Where values are clipped, the size (RMS) of the weights'
    gradients, in at least 8 measured steps, stands in place of the norm.
    When it stays silent: training works; Adam and other optimizers that divide by the size of the gradient, for which
    a constant factor cancels; clipping of spikes.
    Fix: a threshold at the usual norm of the gradient, or ten times the usual size of its values.
    Sources: Pascanu, Mikolov and Bengio, 2013 (half to ten times the average norm); advice A7 and the story under B.
    """

    name = "clip-too-small"
    needs = frozenset({Stat.RMS})
    explains = frozenset({"learning-rate-too-low", "loss-not-decreasing", "cannot-overfit-tiny-batch", "underfitting"})

    factor: float = 10.0  # of the threshold: under it clipping is a mild normalisation of the step
    share: float = 0.9  # of the steps: a threshold for spikes bites in a few percent
    steps: int = 30  # large gradients at the very start are usual
    measured: int = 8  # of the steps, where values are clipped: 28 of the first 1,000 are, most of them early

    def judge(self, recording: Recording) -> Iterator[Finding]:
        kinds = {event.detail for event in recording.events if event.kind == "clip"}
        by_value = kinds == {"value"}
        ratios, norms, limit = _ratios(recording, _sizes(recording) if by_value else _norms(recording))
        too_short = recording.steps < self.steps or ratios.size < (self.measured if by_value else self.steps)
        if too_short or _divides(recording) or not kinds:
            return
        bitten = float((ratios > self.factor).mean())
        state = harm(recording)
        if bitten < self.share or state.state not in {State.HURT, State.SLOW}:
            return
        usual, source = float(np.median(norms)), first_source(recording, "clip")
        nice = float(f"{usual * (self.factor if by_value else 1):.1g}")
        code = with_limit(source, nice, by_value)
        what, usually = ("size", "ten times the usual size") if by_value else ("norm", "the usual norm")
        yield Finding(
            self.name,
            f"gradients of {what} {usual:.3g} (median) are clipped to {limit:g} in {100 * bitten:.0f} % of the steps",
            Severity.WARNING,
            f"Each step is {np.median(ratios):.0f} times smaller than the learning rate says. {state.words}",
            Location.at(source, step=0),
            (Evidence(f"{what} over threshold, median", float(np.median(ratios)), ">", self.factor),),
            (Fix("raise-clip", f"Clip at {usually}, about {nice:g}.", code, Reach.RUN),),
            first_step=0,
            share=bitten,
        )


def _norms(recording: Recording) -> Series | None:
    """The norm of all gradients before they were clipped, per step."""
    return recording.scalars.get("norm at clipping")


def _sizes(recording: Recording) -> Series | None:
    """The median over the weights of the size of their gradients before they were clipped, per measured step."""
    found = [recording.of_parameter(name, Stat.RMS, Role.WEIGHT_GRADIENT) for name in recording.parameters]
    tracks = [track for track in found if track is not None]
    steps = np.unique(np.concatenate([track.steps for track in tracks])) if tracks else np.empty(0, np.int64)
    sizes = [
        np.median([track.values[track.steps == step] for track in tracks if step in track.steps]) for step in steps
    ]
    return Series(steps, np.asarray(sizes)) if sizes else None


def _ratios(recording: Recording, sizes: Series | None) -> tuple[Array, Array, float]:
    """Size over threshold per step, the sizes, and the last threshold; empty when nothing was clipped."""
    limits = recording.scalars.get("clip limit")
    if sizes is None or limits is None:
        return np.empty(0), np.empty(0), 0.0
    _, norms, allowed = shared(sizes, limits)
    kept = allowed > 0
    return norms[kept] / allowed[kept], norms[kept], float(limits.values[-1])


def _divides(recording: Recording) -> bool:
    """Whether the optimizer divides by the size of the gradient, as Adam, RMSprop and Adagrad do."""
    adaptive = any("eps" in group for optimizer in recording.optimizers for group in optimizer.groups)
    return adaptive or not recording.optimizers or recording.optimizers[0].type == "Rprop"
