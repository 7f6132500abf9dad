"""Tensors of an earlier step that the graph of a loss still hangs on: a hidden state that was not detached."""

from __future__ import annotations

from netdoctor.capture.recorder import Recorder
from netdoctor.capture.source import source_line
from netdoctor.capture.tape import Backward, Slot

KIND = "carried graph"  # of the event
_MOST = 4  # events: the first one tells


def note(recorder: Recorder, step: int, backward: Backward) -> None:
    """Keep the first call of a step that is given such a tensor. In the first step there is none to be given."""
    if not step or recorder.counts.get(KIND, 0) >= _MOST:
        return
    for entry in backward.entries:
        if any(isinstance(item, Slot) and item.number < 0 for item in entry.meanings()):
            recorder.count(KIND, step, entry.name, source=source_line(*entry.position))
            return
