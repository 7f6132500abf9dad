from __future__ import annotations

import pytest

from netdoctor.checks.generalisation.stale_statistics import StaleStatistics
from netdoctor.finding import Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder


@pytest.mark.parametrize(
    ("norms", "shift", "fires"), [(3, 0.5, True), (3, 0.49, False), (0, 4.0, False), (1, 4.0, True)]
)
def test_norms_that_stayed_as_they_were_built(norms, shift, fires):
    build = Builder().facts(stale_norms=float(norms), stale_norms_shift=shift)
    build.recording.events.append(Event(40, "stale norms", source=SourceLine("t.py", 30, "average(x)")))
    found = list(StaleStatistics().judge(build.done()))
    assert [(one.severity, one.location.line) for one in found] == [(Severity.ERROR, 30)] * fires


def test_nothing_was_seen():
    assert list(StaleStatistics().judge(Builder().done())) == []
