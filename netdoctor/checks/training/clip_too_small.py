"""The check `clip-too-small`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.training.optimizer_line import first_source, with_limit
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Array, Recording


@dataclass(frozen=True)
class ClipTooSmall(Check):
    """Gradients are clipped to a small part of their norm in nearly every step, and training crawls.

    What it is: a threshold that is meant for rare spikes lies far under the usual norm of the gradient.
    Why it hurts: every step is divided by the same large factor, which acts as a learning rate as many times lower.
    How it is decided: the recorded norms before clipping exceed the threshold by more than 10 times in 90 % of at
    least 30 steps, and the loss does not fall, or lost little.
    When it stays silent: training works; Adam and other optimizers that divide by the size of the gradient, for which
    a constant factor cancels; clipping of spikes; clipping by value.
    Fix: a threshold at the usual norm of the gradient.
    Sources: Pascanu, Mikolov and Bengio, 2013 (half to ten times the average norm); advice A7 and the story under B.
    """

    name = "clip-too-small"
    explains = frozenset({"learning-rate-too-low", "loss-not-decreasing", "cannot-overfit-tiny-batch", "underfitting"})

    factor: float = 10.0  # of the threshold: under it clipping is a mild normalisation of the step
    share: float = 0.9  # of the steps: a threshold for spikes bites in a few percent
    steps: int = 30  # large gradients at the very start are usual

    def judge(self, recording: Recording) -> Iterator[Finding]:
        ratios, norms, limit = self._ratios(recording)
        if ratios.size < self.steps or _divides(recording) or not _by_norm(recording):
            return
        bitten = float((ratios > self.factor).mean())
        state = harm(recording)
        if bitten < self.share or state.state not in {State.HURT, State.SLOW}:
            return
        usual, source = float(np.median(norms)), first_source(recording, "clip")
        nice = float(f"{usual:.1g}")
        code = with_limit(source, nice)
        yield Finding(
            self.name,
            f"gradients of norm {usual:.3g} (median) are clipped to {limit:g} in {100 * bitten:.0f} % of the steps",
            Severity.WARNING,
            f"Each step is {np.median(ratios):.0f} times smaller than the learning rate says. {state.words}",
            Location.at(source, step=0),
            (Evidence("norm over threshold, median", float(np.median(ratios)), ">", self.factor),),
            (Fix("raise-clip", f"Clip at the usual norm, about {nice:g}.", code, Reach.RUN),),
            first_step=0,
            share=bitten,
        )

    def _ratios(self, recording: Recording) -> tuple[Array, Array, float]:
        """Norm over threshold per step, the norms, and the last threshold; empty when nothing was clipped."""
        norms, limits = recording.scalars.get("norm at clipping"), recording.scalars.get("clip limit")
        if norms is None or limits is None:
            return np.empty(0), np.empty(0), 0.0
        _, at_norm, at_limit = np.intersect1d(norms.steps, limits.steps, return_indices=True)
        kept = limits.values[at_limit] > 0
        found = norms.values[at_norm][kept]
        return found / limits.values[at_limit][kept], found, float(limits.values[-1])


def _divides(recording: Recording) -> bool:
    """Whether the optimizer divides by the size of the gradient, as Adam, RMSprop and Adagrad do."""
    adaptive = any("eps" in group for optimizer in recording.optimizers for group in optimizer.groups)
    return adaptive or not recording.optimizers or recording.optimizers[0].type == "Rprop"


def _by_norm(recording: Recording) -> bool:
    return any(event.kind == "clip" and event.detail == "norm" for event in recording.events)
