"""`python fake_session.py ARGS…`: the command line over a session without torch that does as FAKE_SESSION says.

It lets the doors be tested by themselves, in fractions of a second: what they print, write, refuse and exit with.
FAKE_SESSION is one of: healthy, warning, sick, unobserved, stop (EnoughSteps at the first `sys.audit("train")`), fault.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from netdoctor.finding import Finding, Fix, Location, Severity
from netdoctor.recording import Recording
from netdoctor.report import Experiment, Report

MODE = os.environ.get("FAKE_SESSION", "healthy")


class EnoughSteps(BaseException):
    """Thrown out of `optimizer.step`."""


@dataclass(frozen=True)
class Options:
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    budget: float = 60.0
    experiments: bool = True
    steps: int | None = None
    target: str = ""
    progress: bool = False


def report(options: Options, ended: str = "finished") -> Report:
    severity = {"sick": Severity.ERROR, "warning": Severity.WARNING, "stop": Severity.ERROR}.get(MODE)
    finding = Finding(
        "fake-check",
        f"a made-up finding under {options}",
        severity or Severity.ADVICE,
        "Because the test says so.",
        Location("body.3", file="train.py", line=3),
        fixes=(Fix("fake", "Change it.", "x = 1"),),
    )
    verdict = "not observed" if MODE == "unobserved" else "sick" if severity else "healthy"
    experiments = {
        "healthy": (Experiment("overfit-tiny-batch", "passed", "8 samples fitted"),),
        "sick": (Experiment("overfit-tiny-batch", "failed", "8 samples could not be fitted"),),
    }
    return Report(
        options.target,
        verdict,
        3,
        (finding,) if severity else (),
        experiments=experiments.get(MODE, ()),
        ended=ended,
        losses={"loss": (2.0, 0.5)},
    )


class Session:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.recording = Recording(counts={"backward": 0})
        self.ended = ""

    def start(self) -> None:
        if MODE == "stop":
            sys.addaudithook(self._train)

    @staticmethod
    def _train(event: str, _: object) -> None:
        if event == "train":
            raise EnoughSteps

    follows = False

    def keep(self, path: object) -> None:
        """Nothing to keep."""

    def include(self, *_: object) -> None: ...

    def log(self, **scalars: float) -> None: ...

    def findings(self) -> tuple[Finding, ...]:
        return report(self.options).findings

    def stop(self, ended: str = "finished") -> None:
        self.ended = ended

    def report(self) -> Report:
        if MODE == "fault":
            raise ZeroDivisionError("made up")
        return report(self.options, self.ended)


def examine(
    model: object,
    loss_fn: object,
    batch: object,
    optimizer: object = None,
    *,
    steps: int | None = None,
    options: Options | None = None,
) -> Report:
    return report(options or Options())


def examined(*arguments: object, **options: Any) -> tuple[Report, Recording]:
    return examine(*arguments, **options), Recording()


class FindingError(Exception): ...


def install() -> None:
    """Put this in the session's place."""
    fake = ModuleType("netdoctor.session")
    vars(fake).update(EnoughSteps=EnoughSteps, Options=Options, Session=Session, examine=examine)
    vars(fake).update(examined=examined, FindingError=FindingError)
    sys.modules["netdoctor.session"] = fake


if __name__ == "__main__":
    install()
    from netdoctor.cli import main

    main(prog_name="netdoctor")
