"""state-kept-by-reference: which uses of a kept state are a fault, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.training.state_kept_by_reference import StateKeptByReference
from netdoctor.data import Evaluation
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder

TEXT = "best = {k: v for k, v in net.state_dict().items()}"


def used(how: str = "load", was: int = 20, now: int = 40, times: int = 1, text: str = TEXT) -> Builder:
    build = Builder(steps=40)
    build.recording.events = [
        Event(was, "state taken", value=was, source=SourceLine("train.py", 7, text)),
        *[Event(now, "kept state", how, was, SourceLine("train.py", 12, "net.load_state_dict(best)"))] * times,
    ]
    return build


def judged(build: Builder) -> list[Finding]:
    return list(StateKeptByReference().judge(build.done()))


@pytest.mark.parametrize(
    ("build", "severity"),
    [
        (used(), Severity.ERROR),
        (used(now=21), Severity.ERROR),
        (used(now=20), None),
        (used(was=0), Severity.ERROR),  # a model that was to begin anew
        (used(times=3), Severity.ERROR),
        (used("save"), Severity.WARNING),
        (used("save", now=20), None),
        (used("save", was=0), None),  # taken once, before training: who saves it wants what was learned
        (used("save", times=2), None),
        (used("load elsewhere"), Severity.WARNING),
        (used("load elsewhere", times=2), None),
        (used("swap", now=20), Severity.WARNING),
        (Builder(steps=40), None),
    ],
)
def test_limits(build: Builder, severity: Severity | None) -> None:
    assert [f.severity for f in judged(build)] == ([] if severity is None else [severity])


def test_the_fix_is_in_the_line_that_kept_it() -> None:
    (found,) = judged(used())
    assert (found.location.line, found.location.step) == (7, 20)
    assert "Line 12 gets the newest weights" in found.explanation
    assert found.fixes[0].code == "best = {k: v for k, v in copy.deepcopy(net.state_dict()).items()}"
    (other,) = judged(used(text="best = keep(").facts(model_variable="net"))
    assert other.fixes[0].code == "copy.deepcopy(net.state_dict())"


@pytest.mark.parametrize(("last", "lost"), [(1.5, True), (0.4, False)])
def test_what_was_lost(last: float, lost: bool) -> None:
    build = used()
    build.recording.evaluations = [Evaluation(np.array([10, 20, 30, 40]), np.array([1.0, 0.5, 0.9, last]))]
    (found,) = judged(build)
    assert ("0.5 when it was kept, and 1.5" in found.explanation) is lost
