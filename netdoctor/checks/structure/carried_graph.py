"""The check `carried-graph`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

MESSAGE = "backward through the graph a second time"
_SAYS = "Detach it before the next step, and keep its values."
_ELSEWHERE = " What is made once, before the loop, and is to be trained, has to be made anew in every step instead."
_NAME = r"[A-Za-z_][\w.]*"


@dataclass(frozen=True)
class CarriedGraph(Check):
    """Backward fails in a later step, for the loss still hangs on the graph of the step before.

    What it is: a tensor that was computed in one step is used in the next one with its history: the hidden state of a
    recurrent net from batch to batch, a running total, an embedding that is made once outside of the loop.
    Why it hurts: `backward` frees a graph when it is done with it; the second call that comes to the same part fails.
    `retain_graph=True` only moves the trouble: each step then goes back to the first one, and memory grows.
    How it is decided: the script ended with torch's "Trying to backward through the graph a second time", and a call in
    a step after the first one was given a tensor of an earlier step that requires a gradient.
    When it stays silent: two backward calls on one loss within a step; every run that does not end so.
    Fix: detach what goes from one step to the next.
    Sources: PyTorch's word-language-model example (repackage_hidden); Truncated backpropagation, Williams and Peng, 1990.
    """

    name = "carried-graph"
    explains = EVERYTHING

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = next((event for event in recording.events if event.kind == "carried graph"), None)
        if MESSAGE not in recording.header.ended or found is None:
            return
        text = "" if found.source is None else found.source.text
        name = carried(text)
        what = name or "a tensor"
        yield Finding(
            self.name,
            f"{what} comes from an earlier step with its graph, through which backward went already",
            Severity.ERROR,
            f"What {found.detail or 'this call'} is given in step {found.step} was computed in an earlier one. backward freed the "
            "graph that it hangs on, and cannot go through it again.",
            Location.at(found.source, operation=found.detail or None, step=found.step),
            (Evidence("step in which it is used again", float(found.step), ">", 0.0),),
            (Fix("detach-carried", _SAYS if name else _SAYS + _ELSEWHERE, _code(name), Reach.RUN),),
            first_step=found.step,
            share=1.0,
        )


def carried(text: str) -> str:
    """The name that a line both sets and uses: "hidden" of `out, hidden = rnn(x, hidden)`; "" where there is none."""
    left, equals, right = text.partition("=")
    if not equals or right.startswith("="):
        return ""
    names = [name for name in re.findall(_NAME, left) if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", right)]
    return names[-1] if names else ""


def _code(name: str) -> str:
    what = name or "hidden"
    return f"{what} = {what}.detach()  # of an LSTM: {what} = tuple(part.detach() for part in {what})"
