from __future__ import annotations

import pytest

from netdoctor.checks.structure.carried_graph import CarriedGraph, carried
from netdoctor.recording import Event, Header, SourceLine
from tests.checks.builders import Builder

ENDED = "raised RuntimeError: Trying to backward through the graph a second time (or directly ..."


def judged(ended=ENDED, event=True) -> list:
    build = Builder(1)
    build.recording.header = Header(ended=ended)
    if event:
        line = SourceLine("t.py", 9, "out, hidden = rnn(x, hidden)")
        build.recording.events.append(Event(1, "carried graph", "GRU", source=line))
    return list(CarriedGraph().judge(build.done()))


def test_the_call_that_is_given_it():
    (found,) = judged()
    assert (found.location.line, found.location.operation, found.location.step) == (9, "GRU", 1)
    assert found.title.startswith("hidden comes from an earlier step")
    assert found.evidence[0].measured == 1.0  # the step of the event
    assert found.fixes[0].code.startswith("hidden = hidden.detach()")


@pytest.mark.parametrize(("ended", "event"), [("finished", True), (ENDED, False), ("raised RuntimeError: other", True)])
def test_it_is_silent(ended, event):
    assert judged(ended, event) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("out, hidden = rnn(x, hidden)", "hidden"),
        ("self.state = self.cell(x, self.state)", "self.state"),
        ("total = total + loss", "total"),
        ("out = model(x)", ""),
        ("return rnn(x, hidden)", ""),
        ("state_2 = cell(x, state)", ""),
    ],
)
def test_the_name_that_goes_on(text, name):
    assert carried(text) == name
