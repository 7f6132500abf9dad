"""The check `sgd-without-momentum`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

LAYERS = ("Conv1d", "Conv2d", "Conv3d", "Linear", "LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class SgdWithoutMomentum(Check):
    """A deep network is trained by plain SGD, and gets on slowly.

    What it is: SGD with momentum 0 goes down the steep directions at once and along the flat ones hardly at all.
    Why it hurts: the deeper the network, the more its directions differ in curvature, and the longer it takes.
    How it is decided: SGD with momentum 0 trains at least 3 weight matrices, and more than half of a constant
    prediction's loss is left after at least 50 steps, though it falls. Advice only.
    When it stays silent: shallow models; momentum; adaptive optimizers; training that is fast enough, or that fails
    altogether, for which there are other causes.
    Fix: momentum=0.9, or Adam at 1e-3.
    Sources: Sutskever et al. 2013 (importance of momentum); advice A25, B1.
    """

    name = "sgd-without-momentum"

    layers: int = 3  # weight matrices: on one or two plain SGD does well enough
    steps: int = 50  # fewer are no time at all for plain SGD

    def judge(self, recording: Recording) -> Iterator[Finding]:
        state = harm(recording)
        for optimizer in recording.optimizers:
            plain = optimizer.type == "SGD" and not any(float(g.get("momentum", 0.0)) for g in optimizer.groups)
            own = [recording.parameters[n] for n in optimizer.parameters if n in recording.parameters]
            deep = sum(len(p.shape) > 1 for p in own)
            if not plain or deep < self.layers or optimizer.steps < self.steps or state.state is not State.SLOW:
                continue
            yield Finding(
                self.name,
                f"plain SGD trains {deep} weight matrices, slowly",
                Severity.ADVICE,
                f"Momentum adds up what successive steps agree on. {state.words}",
                Location.at(optimizer.source, step=0),
                (Evidence("weight matrices under plain SGD", deep, "≥", self.layers),),
                (
                    Fix(
                        "momentum",
                        "Give it momentum.",
                        _code(optimizer.source.text if optimizer.source else ""),
                        Reach.RUN,
                    ),
                ),
                Certainty.INFERRED,
            )


def _code(text: str) -> str:
    """The optimizer's line with a momentum, where the line is whole; else the general form."""
    start = text.find("SGD(")
    if start < 0 or "momentum" in text:
        return "optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"
    depth = 0
    for at, letter in enumerate(text[start:], start):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return f"{text[:at]}, momentum=0.9{text[at:]}"
    return "optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"
