"""The check `half-precision-underflow`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import first_source, variable
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

ARM = "underflow/scaled loss"


@dataclass(frozen=True)
class HalfPrecisionUnderflow(Check):
    """A part of the gradient is too small for float16 and becomes zero, and no loss scaler is in use.

    What it is: float16 ends at 6e-8 downwards, where gradients of a mean over many samples and positions often lie.
    Why it hurts: those weights get no gradient, first of all in the early layers; Adam makes the most of what is left.
    How it is decided: the first backward pass is run again on a copy, as it is and with the loss times 4096: of the
    entries that are not zero with the scaled loss, a tenth or more is zero without.
    When it stays silent: GradScaler in use, or scaling by hand; bfloat16, which reaches as far down as float32; units
    that get no gradient in any precision.
    Fix: torch.amp.GradScaler, or bfloat16.
    Sources: Micikevicius et al. 2018, section 3.2 (loss scaling); PyTorch's notes on automatic mixed precision.
    """

    name = "half-precision-underflow"
    arms = frozenset({ARM})
    explains = frozenset(
        {"vanishing-gradients", "no-gradient", "lost-updates", "loss-not-decreasing", "learning-rate-too-low"}
        | {"cannot-overfit-tiny-batch", "symmetric-initialization", "underfitting"}
    )

    lost: float = 0.1  # of the gradient's entries: measured 0.001 in sound float16 programs, 0.3 in a faulty one

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get(ARM)
        if arm is None:
            return
        if arm.failure:
            yield Abstention(self.name, arm.failure)
            return
        lost = float(arm.facts.get("lost", 0.0))
        if lost < self.lost:
            return
        source = first_source(recording, "backward")
        loss = source.text.partition(".backward")[0].split(";")[-1].strip() if source is not None else "loss"
        optimizer = variable(recording)
        code = _scaled(loss or "loss", optimizer, recording.header.device.partition(":")[0] or "cuda")
        yield Finding(
            self.name,
            f"{100 * lost:.0f} % of the gradient is rounded to zero in float16",
            Severity.WARNING,
            f"With the loss times 4096 those numbers are there. At worst a parameter loses "
            f"{100 * float(arm.facts.get('worst', lost)):.0f} % of its gradient.",
            Location.at(source, step=0),
            (Evidence("gradient that only a scaled loss has", 100 * lost, "≥", 100 * self.lost, "%"),),
            (Fix("loss-scaling", "Scale the loss, or compute in bfloat16.", code, Reach.RUN),),
            Certainty.PROVEN,
            first_step=0,
            share=lost,
        )


def _scaled(loss: str, optimizer: str, device: str) -> str:
    """A loss scaler and what uses it; a scaler that the script has already, and that does not scale, is replaced."""
    own = re.match(r"([\w.]+)\.scale\(", loss)
    if own is not None:
        return f'{own[1]} = torch.amp.GradScaler("{device}")  # in place of the one that does not scale'
    made = f'scaler = torch.amp.GradScaler("{device}")  # once, before the loop'
    return f"{made}\nscaler.scale({loss}).backward()\nscaler.step({optimizer})\nscaler.update()"
