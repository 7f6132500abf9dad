"""The check `state-kept-by-reference`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.generalisation.curves import curves
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Event, Recording, SourceLine

KIND, TAKEN = "kept state", "state taken"  # of the events; their value is the step at which the state was taken
_CALL = re.compile(r"[A-Za-z_][\w.\[\]]*\.state_dict\(\)")
_WHAT = {
    "load": "`load_state_dict` puts nothing back: the state kept at step {was} is the weights of step {now}",
    "swap": "`load_state_dict` puts nothing back: the state kept before is the one that was loaded since",
    "load elsewhere": "the state kept at step {was} was loaded at step {now}, and is the weights of then",
    "save": "the state kept at step {was} was saved at step {now}, and is the weights of then",
}


@dataclass(frozen=True)
class StateKeptByReference(Check):
    """The best weights were kept as `model.state_dict()`, which refers to the weights that training goes on to change.

    What it is: `state_dict()` copies nothing. A dictionary that is kept from the best evaluation holds the newest weights
    at any later time, and so do its copies by `dict(...)`, by `.detach()`, and by `.cpu()` on the CPU.
    Why it hurts: loading it changes nothing: the model stays what the last step made of it, often overfitted.
    How it is decided: at each `load_state_dict`. Every tensor given is the module's own, in the same memory; they were
    taken by `state_dict()` at an earlier step, and the optimizer wrote to them since. A warning where another state was
    loaded between, or where such a state, taken after the first step, is saved or loaded into another model, once.
    When it stays silent: copies (`deepcopy`, `clone`, another device, a file); a state used in the step in which it was
    taken; one of which only a part is the model's own; one that is saved or loaded elsewhere again and again.
    Fix: `copy.deepcopy(model.state_dict())`.
    Sources: PyTorch's tutorial on saving and loading models (best_model_state must be serialised or deep-copied).
    """

    name = "state-kept-by-reference"
    explains = frozenset({"overfitting"})  # the best weights would have been put back

    steps: int = 1  # between the taking and the use, at least

    def judge(self, recording: Recording) -> Iterator[Finding]:
        used = [event for event in recording.events if event.kind == KIND]
        for how in _WHAT:
            found = [e for e in used if e.detail == how and self._counts(recording, e, used)]
            if found:
                yield self._finding(recording, how, found[-1], len(found))
                return

    def _counts(self, recording: Recording, event: Event, used: list[Event]) -> bool:
        """Whether it is a fault. Who uses the same state elsewhere again and again means the newest weights."""
        if event.detail == "swap":
            return recording.steps > 0
        late = event.step - event.value >= self.steps
        if event.detail == "load":
            return late
        again = sum(e.value == event.value and e.detail == event.detail for e in used) > 1
        return late and event.value > 0 and not again

    def _finding(self, recording: Recording, how: str, event: Event, times: int) -> Finding:
        was, now = int(event.value), event.step
        taken = next((e.source for e in recording.events if e.kind == TAKEN and e.value == event.value), None)
        line = "Its use" if event.source is None else f"Line {event.source.line}"
        since = f"{now - was} steps" if now > was else "the load"
        often = f" So it went {times} times." if times > 1 else ""
        return Finding(
            self.name,
            _WHAT[how].format(was=was, now=now),
            Severity.ERROR if how == "load" else Severity.WARNING,
            f"`state_dict()` gives references to the weights, and no copy; {since} between wrote to them. {line} gets the "
            f"newest weights.{often}{_lost(recording, was, now) if how != 'swap' else ''}",
            Location.at(taken or event.source, step=was),
            (Evidence("steps between keeping and use", now - was, "≥", self.steps if how != "swap" else 0),),
            (Fix("copy-state", "Keep a copy (with `import copy` above).", _code(recording, taken), Reach.RUN),),
            first_step=was,
            share=1.0,
        )


def _lost(recording: Recording, was: int, now: int) -> str:
    """What the script's own evaluations say of the weights of then and of those that were used."""
    for curve in curves(recording):
        before, after = curve.steps <= was, curve.steps <= now
        if before.any() and after.sum() > before.sum():
            then, last = float(curve.losses[before][-1]), float(curve.losses[after][-1])
            if np.isfinite(then) and last > then:
                return f" The held-out loss was {then:.4g} when it was kept, and {last:.4g} at the last evaluation before its use."
    return ""


def _code(recording: Recording, taken: SourceLine | None) -> str:
    text = "" if taken is None else taken.text
    if _CALL.search(text):
        return _CALL.sub(lambda found: f"copy.deepcopy({found[0]})", text, count=1)
    return f"copy.deepcopy({recording.facts.get('model_variable', 'model')}.state_dict())"
