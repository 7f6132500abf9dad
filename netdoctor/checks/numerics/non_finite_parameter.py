"""The check `non-finite-parameter`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from netdoctor.check import Check
from netdoctor.checks.numerics.birth import birth
from netdoctor.checks.numerics.optimizer_faults import explain
from netdoctor.checks.numerics.wording import CONSEQUENCES, joined, place, severity
from netdoctor.finding import Certainty, Evidence, Finding, Location
from netdoctor.recording import Origin, Recording, SourceLine, Stat


@dataclass(frozen=True)
class NonFiniteParameter(Check):
    """A parameter or buffer became NaN or Inf although its gradient was finite, or was so from the start.

    What it is: the optimizer step made it (0/0 in Adam or RMSprop without eps, a learning rate that is NaN or far too
    high), or the weight was loaded or initialised with it.

    Why it hurts: every forward pass after it gives NaN; the weight cannot come back.

    How it is decided: the replay finds the weight non-finite before the forward pass ("parameter"), or finite before
    and non-finite after the optimizer step while its gradient is finite ("optimizer").

    When it stays silent: when a gradient was non-finite before (`non-finite-gradient` or `non-finite-activation`).

    Fix: what the optimizer's options suggest: eps, learning rate; or reload or re-initialise the weight.

    Sources: peers.md c4 (the optimizer's state as a class of its own); Kingma and Ba 2015, section 2 (eps in Adam).
    """

    name: ClassVar[str] = "non-finite-parameter"
    breaks: ClassVar[bool] = True
    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.NONFINITE, Stat.RMS})
    explains: ClassVar[frozenset[str]] = CONSEQUENCES | {"non-finite-activation", "non-finite-gradient"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        """One finding when a weight or buffer was the first to be non-finite."""
        origin = birth(recording)
        if origin is None or origin.phase not in {"parameter", "optimizer"}:
            return
        reason = explain(recording, origin)
        maker = "the optimizer step" if recording.optimizers else "the loop's own update"
        by = f"{maker} makes" if origin.phase == "optimizer" else "before the forward pass"
        subject = origin.parameter or f"a parameter{place(origin)}"
        how = f"{by} {subject} {origin.kind}" if origin.phase == "optimizer" else f"{subject} is {origin.kind} {by}"
        yield Finding(
            self.name,
            f"{how} at step {origin.step}" + (f" ({reason.short})" if reason.short else ""),
            severity(recording, origin),
            joined(reason.why, f"({origin.note})" if origin.note and not origin.reproduced else ""),
            Location.at(_source(recording, origin), _module(recording, origin), None, origin.step, origin.samples),
            reason.evidence or (Evidence(f"first step with {origin.kind}", float(origin.step), "≥", 0.0),),
            (reason.fix,),
            Certainty.MEASURED if reason.evidence or origin.phase == "parameter" else Certainty.INFERRED,
            origin.step,
            places=(origin.parameter,) if origin.parameter else (),
        )


def _module(recording: Recording, origin: Origin) -> str | None:
    parameter = recording.parameters.get(origin.parameter)
    return origin.module or (parameter.module if parameter else origin.parameter.rpartition(".")[0]) or None


def _source(recording: Recording, origin: Origin) -> SourceLine | None:
    parameter = recording.parameters.get(origin.parameter)
    if origin.phase != "optimizer" or parameter is None or parameter.optimizer is None:
        return origin.source
    owners = recording.optimizers[parameter.optimizer : parameter.optimizer + 1]
    return next((owner.source for owner in owners if owner.source is not None), origin.source)
