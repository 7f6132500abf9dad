"""Lines `module.requires_grad = ...` that did nothing, with the parameters that they were meant for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.gradients import listed, owned
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Event, Parameter, Recording, Role, SourceLine, Stat
from netdoctor.trend import judge

KIND = "module requires_grad"  # of the events; their value is 1 for True and 0 for False
ABOUT = "A module has no `requires_grad` of its own: the line gives it a new attribute, which nothing reads."
_ASSIGNMENT = re.compile(r"\.requires_grad\s*=(?!=)\s*(?P<value>[^#;]+?)(?=\s*(?:$|[#;]))")


@dataclass(frozen=True, slots=True)
class Line:
    """One line without effect: the outermost modules that it was run for, and the parameters that are still as they were."""

    source: SourceLine | None
    step: int  # before which it first ran
    modules: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    value: bool

    @property
    def names(self) -> str:
        """The modules, as they read in a sentence."""
        return listed([path or "the model" for path in self.modules])

    @property
    def code(self) -> str:
        """The line as it should be; made from its own text where that is an assignment."""
        text = "" if self.source is None else self.source.text
        if _ASSIGNMENT.search(text):
            return _ASSIGNMENT.sub(lambda found: f".requires_grad_({found['value']})", text, count=1)
        return f"{self.modules[0] or 'model'}.requires_grad_({self.value})"


def lines(recording: Recording, value: bool) -> list[Line]:
    """The lines that set `value` on modules whose parameters do not have it to this day, in the order in which they ran."""
    found: dict[SourceLine | None, list[Event]] = {}
    for event in recording.events:
        if event.kind == KIND and bool(event.value) is value and event.step < recording.steps:
            found.setdefault(event.source, []).append(event)
    made = [_line(recording, events, value) for events in found.values()]
    return [line for line in made if line.parameters]


def _line(recording: Recording, events: list[Event], value: bool) -> Line:
    paths = list(dict.fromkeys(event.detail for event in events))
    outer = tuple(path for path in paths if not any(_within(path, other) for other in paths if other != path))
    held = (p for p in recording.parameters.values() if p.requires_grad is not value)
    kept = tuple(p for p in held if any(_within(p.name, path) for path in outer))
    return Line(events[0].source, min(event.step for event in events), outer, kept, value)


def _within(name: str, path: str) -> bool:
    return path == "" or name.startswith(f"{path}.")


def moved(recording: Recording, line: Line) -> list[Parameter]:
    """Those of the line's parameters that an optimizer has moved since."""
    return [p for p in line.parameters if owned(recording, p) and _moves(recording, p.name, line.step)]


def _moves(recording: Recording, name: str, since: int) -> bool:
    track = recording.of_parameter(name, Stat.RMS, Role.UPDATE)
    return track is not None and bool((track.values[track.steps >= since] > 0).any())


def weights(parameters: Iterable[Parameter]) -> int:
    """How many numbers they hold."""
    return sum(prod(p.shape) for p in parameters)


def unfreezes_nothing(check: str, recording: Recording, line: Line) -> Finding:
    """What `frozen-by-mistake` says of a line that set True."""
    trend, kept = judge(recording), tuple(p.name for p in line.parameters)
    says = "Call the method, which sets it on all parameters of the module."
    if not all(owned(recording, parameter) for parameter in line.parameters):
        says = f"{says} They must be given to the optimizer, too."
    return Finding(
        check,
        f"`requires_grad = True` on {line.names} unfreezes nothing",
        Severity.ERROR if outcome.hurt(trend) else Severity.WARNING,
        f"{ABOUT} What was frozen before stays frozen to the end. {outcome.words(trend)}",
        Location.at(line.source, line.modules[0] or None, step=line.step),
        (Evidence("parameters that should train since then, and are frozen", len(kept), ">", 0.0),),
        (Fix("unfreeze-module", says, line.code, Reach.RUN),),
        first_step=line.step,
        places=kept,
        share=weights(line.parameters) / max(1, weights(recording.parameters.values())),
    )


def freezes_nothing(check: str, recording: Recording, line: Line, trained: list[Parameter]) -> Finding:
    """What `frozen-parameter-moves` says of a line that set False on what an optimizer goes on moving (`trained`)."""
    kept = tuple(p.name for p in trained)
    return Finding(
        check,
        f"`requires_grad = False` on {line.names} freezes nothing",
        Severity.WARNING,
        f"{ABOUT} What was to stay as it is goes on training.",
        Location.at(line.source, line.modules[0] or None, step=line.step),
        (Evidence("parameters that were to be frozen, and move", len(kept), ">", 0.0),),
        (
            Fix(
                "freeze-module", "Call the method, which sets it on all parameters of the module.", line.code, Reach.RUN
            ),
        ),
        first_step=line.step,
        places=kept,
        share=weights(trained) / max(1, weights(recording.parameters.values())),
    )
