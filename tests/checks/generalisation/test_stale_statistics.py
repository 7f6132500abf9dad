from __future__ import annotations

import pytest

from netdoctor.checks.generalisation.stale_statistics import StaleStatistics
from netdoctor.finding import Certainty, Severity, Verdict
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


@pytest.mark.parametrize(
    ("given", "verdict"),
    [(0.25, Verdict.CURED), (0.26, Verdict.EASED), (0.5, Verdict.EASED), (0.51, Verdict.NO_EFFECT)],
)
def test_the_copy_with_the_trained_statistics(given, verdict):
    build = Builder().facts(stale_norms=2.0, stale_norms_shift=2.0, stale_norms_own=1.0, stale_norms_given=given)
    (found,) = StaleStatistics().judge(build.done())
    trial = found.fixes[0].trial
    assert (trial.verdict, trial.measured.control, trial.measured.treated) == (verdict, 100.0, 100 * given)
    assert found.certainty is (Certainty.PROVEN if verdict is Verdict.CURED else Certainty.MEASURED)
