"""Batches so small that their gradients are mostly noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.finding import Abstention, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

ARM = "noise/gradients"


@dataclass(frozen=True)
class NoisyGradients(Check):
    """The gradients of single batches have little in common: a larger batch would tell the direction far better.

    What it is: the noise scale, the batch size at which signal and noise of the gradient are equally large, lies far
    above the batch size in use.
    Why it hurts: most of each step is undone by the next ones; training is slow, or wants a smaller learning rate.
    How it is decided: by experiment: the gradients of the captured batches at the same weights, those of the first
    step, where a model that can learn has a common direction. Advice, where training is slow or does not work.
    When it stays silent: training that works; fewer than 4 captured batches of one size; runs without experiments.
    Fix: a larger batch, or gradients accumulated over several.
    Sources: McCandlish et al. 2018, An Empirical Model of Large-Batch Training; advice B-4, B-6, A11, A37.
    """

    name = "noisy-gradients"
    arms = frozenset({ARM})

    times: float = 10.0  # the batch: at the noise scale itself a batch is about as good as it gets per sample
    most: float = 4096.0  # samples that are advised: beyond, gradients that agree on nothing have another cause

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm, state = recording.arms.get(ARM), harm(recording)
        if state.state not in {State.SLOW, State.HURT}:
            return
        if arm is None or arm.failure:
            yield Abstention(self.name, arm.failure if arm else "no experiment compared gradients")
            return
        scale, batch = float(arm.facts["scale"]), float(arm.facts["batch"])
        if not self.times * batch <= scale <= self.most:
            return
        factor = 2 ** int(math.log2(scale / batch))
        yield Finding(
            self.name,
            f"the gradient of a batch of {batch:.0f} is mostly noise: its noise scale is {scale:.0f} samples",
            Severity.ADVICE,
            f"Batches of about {batch * factor:.0f} samples would point in a common direction. {state.words}",
            Location(),
            (Evidence("gradient noise scale", scale, "≥", self.times * batch, "samples"),),
            (
                Fix(
                    "larger-batch",
                    f"Use batches of {batch * factor:.0f}, or add up the gradients of {factor} batches per step.",
                    "",
                    Reach.RUN,
                ),
            ),
            first_step=0,
        )
