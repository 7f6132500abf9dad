"""Tensors of an earlier step that the graph of a loss still hangs on: a hidden state that was not detached."""

from __future__ import annotations

from netdoctor.capture.recorder import Recorder
from netdoctor.capture.source import source_line
from netdoctor.capture.step import Iteration
from netdoctor.capture.tape import Backward, Carried

KIND = "carried graph"  # of the event
_MOST = 4  # events: the first one tells


def note(recorder: Recorder, step: int, backward: Backward) -> None:
    """Keep the first call of a step that is given such a tensor. In the first step there is none to be given."""
    if not step or recorder.counts.get(KIND, 0) >= _MOST:
        return
    for entry in backward.entries:
        if any(isinstance(item, Carried) for item in entry.meanings()):
            recorder.count(KIND, step, entry.name, source=source_line(*entry.position))
            return


def unfinished(running: Iteration) -> Iteration | None:
    """The running iteration, where a call of it was given a tensor that the one before made, with its graph; else None."""
    given = (item for b in running.backwards for entry in b.entries for item in entry.meanings())
    return running if any(isinstance(item, Carried) and item.before >= 0 for item in given) else None
