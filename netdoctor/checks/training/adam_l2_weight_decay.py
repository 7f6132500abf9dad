"""The check `adam-l2-weight-decay`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Optimizer, Recording

ADAPTIVE = {"Adam": "AdamW", "NAdam": "NAdam"}


@dataclass(frozen=True)
class AdamL2WeightDecay(Check):
    """Adam is given a weight decay, which it adds to the gradient and then divides away.

    What it is: in `torch.optim.Adam` weight decay is an L2 term of the gradient; Adam divides it by the size of the
    gradient, so that weights with large gradients are hardly decayed at all.
    Why it hurts: the same number means another regularisation for each weight; AdamW generalises better.
    How it is decided: read from the optimizer's options: Adam or NAdam with weight_decay above 0 that is not decoupled.
    Advice only.
    When it stays silent: AdamW, `decoupled_weight_decay=True`, SGD, and a decay of 0.
    Fix: AdamW; its decay is usually larger, 0.01 to 0.1.
    Sources: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019; advice E-T4.
    """

    name = "adam-l2-weight-decay"

    least: float = 0.0  # any decay is meant to do something

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for optimizer in recording.optimizers:
            decays = [
                float(g.get("weight_decay", 0.0)) for g in optimizer.groups if not g.get("decoupled_weight_decay")
            ]
            if optimizer.type in ADAPTIVE and max(decays, default=0.0) > self.least:
                yield self._finding(optimizer, max(decays))

    def _finding(self, optimizer: Optimizer, decay: float) -> Finding:
        return Finding(
            self.name,
            f"{optimizer.type} with a weight decay of {decay:g} is L2 in the gradient, not weight decay",
            Severity.ADVICE,
            "Adam divides it by the size of each weight's gradient. AdamW takes it from the weight itself.",
            Location.at(optimizer.source, step=0),
            (Evidence("weight decay", decay, ">", self.least),),
            (Fix("adamw", "Use decoupled weight decay.", _code(optimizer), Reach.RUN),),
            Certainty.INFERRED,
        )


def _code(optimizer: Optimizer) -> str:
    text = optimizer.source.text if optimizer.source is not None else ""
    made, count = re.subn(r"\bAdam\(", "AdamW(", text)
    return made if count else "optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)"
