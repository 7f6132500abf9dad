"""A scheduler that is stepped before the optimizer, or never."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import first_source, variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Event, Recording


@dataclass(frozen=True)
class SchedulerOrder(Check):
    """The learning-rate scheduler steps before the optimizer's first step, or never.

    What it is: since PyTorch 1.1 a scheduler is to be stepped after the optimizer.
    Why it hurts: the first value of the schedule is skipped, and every later one comes a step too early; a scheduler
    that is never stepped leaves the learning rate where it was.
    How it is decided: from the order of events: exactly one call of the scheduler stands before the first optimizer
    step, and no more calls than steps follow. Or the run finished without any call of it.
    When it stays silent: the call that a scheduler makes itself when it is built; several calls first, which wind a
    schedule forward when a run is resumed; first steps that a loss scaler skipped; runs cut short; fewer than 2 steps.
    Fix: `scheduler.step()` after `optimizer.step()`.
    Sources: PyTorch's documentation, "How to adjust learning rate", with its note on 1.1.0.
    """

    name = "scheduler-order"
    explains = frozenset({"learning-rate-too-low"})  # a warm-up's first rate, for good

    steps: int = 2  # two steps in the wrong order are no accident

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if recording.counts.get("scaler-skip", 0) or recording.steps < self.steps:
            return
        events = [event for event in recording.events if event.kind == "step" or _is_call(event)]
        if self._early([event.kind for event in events], recording):
            yield self._finding("the scheduler steps before the optimizer", events[0], recording)
        elif recording.facts.get("scheduler_never_stepped") and recording.header.ended == "finished":
            yield self._finding("a scheduler was built and never stepped", None, recording)

    def _early(self, kinds: list[str], recording: Recording) -> bool:
        """Whether one call of the scheduler came first, and there are no more calls than steps."""
        once_first = kinds[:2] == ["scheduler", "step"] and kinds.count("step") >= self.steps
        return once_first and kinds.count("scheduler") <= kinds.count("step")

    def _finding(self, title: str, event: Event | None, recording: Recording) -> Finding:
        calls = recording.counts.get("scheduler", 0) if event else 0
        says = "The first value of the schedule is skipped." if event else "The learning rate stays where it was."
        built = first_source(recording, "scheduler built")
        name = (
            found[1] if built and (found := re.match(r"([A-Za-z_][\w.]*)\s*=[^=]", built.text)) else ""
        ) or "scheduler"
        code = f"{variable(recording)}.step()\n{event.source.text if event and event.source else f'{name}.step()'}"
        fix = Fix("scheduler-after-step", "Step the scheduler after the optimizer.", code, Reach.RUN)
        evidence = Evidence("scheduler calls before the first optimizer step", float(bool(event)), ">", 0.0)
        if event is None:
            evidence = Evidence("scheduler calls", calls, "<", 1.0)
        at = Location.at(event.source if event else built, step=0)
        return Finding(self.name, title, Severity.WARNING, says, at, (evidence,), (fix,), first_step=0)


def _is_call(event: Event) -> bool:
    """A call by the script; the line that builds a scheduler calls it as well, and does not count."""
    return event.kind == "scheduler" and event.source is not None and ".step(" in event.source.text
