"""The check `unstable-loss`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.jumps import late_level, late_noise, rising_steps
from netdoctor.checks.training.optimizer_line import with_lr
from netdoctor.checks.training.pull import loss_left
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording
from netdoctor.trend import judge

OWN, LOWER = "stability/own", "stability/lr x0.1"


@dataclass(frozen=True)
class UnstableLoss(Check):
    """The loss jumps from step to step because the steps overshoot, not because the batches differ.

    What it is: training that falls on the whole, but a part of its steps does the opposite of what a step is for.
    Why it hurts: progress is undone as it is made; where the run ends is chance, and a little more is divergence.
    How it is decided: late in the run the loss jumps by 30 % of its level or more, and 5 % of it are left. A copy then
    takes the first captured steps again, and looks at each batch once more after its own step, with the same random
    numbers, so that no noise of batches or dropout comes in: at least 10 % of the later steps made their own batch's
    loss larger by 5 % or more, and a tenth of the learning rate brings that to a quarter of it or less, and comes to a
    lower loss in as many steps: a rate that jumps about and is still the faster one does no harm.
    When it stays silent: small batches, which jump and still gain with each step; GAN, RL and other moving targets;
    several losses; training that fails altogether (`learning-rate-too-high`, `loss-diverging` speak of it).
    Fix: a third of the learning rate, or a warm-up.
    Sources: the descent lemma (Nesterov 2004, 1.2.3); measured on 28 healthy programs: none in 24 did; advice B-6.
    """

    name = "unstable-loss"
    arms = frozenset({OWN, LOWER})
    explains = frozenset({"dead-relu", "constant-layer", "saturated-activation", "exploding-gradients"})

    noise: float = 0.3  # of the loss, from step to step: small batches do that as well, so it accuses nobody by itself
    left: float = 0.05  # of a constant prediction's loss: near zero the loss jumps by its own size, and nobody minds
    rises: float = 0.1  # of the steps: healthy programs had none, but one with SGD, momentum and a loss near zero
    less: float = 0.25  # of the rises may be left at a tenth of the rate
    gain: float = 0.9  # of the loss is left at a tenth of the rate: there the jumping costs more than it brings
    steps: int = 16  # looked at: a share of fewer is chance

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        own, lower = recording.arms.get(OWN), recording.arms.get(LOWER)
        noise, trend = late_noise(recording), judge(recording)
        if noise < self.noise or trend.failing or own is None or not loss_left(recording) >= self.left:
            return
        if own.failure:
            yield Abstention(self.name, own.failure)
            return
        (share, count), (left, seen) = rising_steps(own), rising_steps(lower)
        if count < self.steps or seen < self.steps or share < self.rises or left > self.less * share:
            return
        if not late_level(lower) < self.gain * late_level(own):
            return
        optimizer = recording.optimizers[0] if recording.optimizers else None
        rate = float(f"{optimizer.lr / 3:.1g}") if optimizer else 0.0
        fixes = (
            (Fix("lower-learning-rate", f"Try {rate:g}.", with_lr(optimizer, rate), Reach.RUN),) if optimizer else ()
        )
        yield Finding(
            self.name,
            f"the loss is unstable: {100 * share:.0f} % of the steps make the loss of their own batch larger",
            Severity.WARNING,
            f"From step to step the loss jumps by {100 * noise:.0f} % of its level. At a tenth of the learning rate "
            f"{100 * left:.0f} % of the steps do so.",
            Location.at(optimizer.source if optimizer else None),
            (
                Evidence("steps that raise their own loss", 100 * share, "≥", 100 * self.rises, "%"),
                Evidence("jumps over the level of the loss", 100 * noise, "≥", 100 * self.noise, "%"),
            ),
            fixes,
            Certainty.PROVEN,
            share=share,
        )
