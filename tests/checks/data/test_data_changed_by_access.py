"""data-changed-by-access: below, at and above its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdoctor.checks.data.data_changed_by_access import DataChangedByAccess
from netdoctor.finding import Abstention, Finding, Severity
from netdoctor.recording import Arm
from tests.checks.builders import Builder

ARM = "data/read again"
FACTS = {
    "change": 0.5,
    "rounds": 5.0,
    "numbers": 35.0,
    "local": True,
    "returns": False,
    "dataset": "Windows",
    "stored": "series",
    "index": 7.0,
    "file": "train.py",
    "line": 12.0,
    "text": "window -= mean",
    "name": "window",
    "mend_line": 10.0,
    "mend_text": "window = self.series[i:j]",
    "tensor": False,
    "function": "__getitem__",
}


def judged(failure: str = "", **facts: Any) -> list[Finding | Abstention]:
    build = Builder(steps=40)
    build.recording.arms = {ARM: Arm(ARM, np.empty(0), facts={**FACTS, **facts}, failure=failure)}
    return list(DataChangedByAccess().judge(build.done()))


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        ({}, Severity.ERROR),
        ({"change": 0.01}, Severity.ERROR),
        ({"change": 0.009}, None),
        ({"rounds": 2.0}, Severity.ERROR),
        ({"rounds": 1.0}, None),
        ({"numbers": 2.0}, Severity.ERROR),
        ({"numbers": 1.0}, None),
        ({"local": False}, None),
        ({"returns": True}, Severity.WARNING),
    ],
)
def test_limits(facts: dict[str, Any], severity: Severity | None) -> None:
    found = judged(**facts)
    assert [f.severity for f in found if isinstance(f, Finding)] == ([] if severity is None else [severity])


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({}, "window = self.series[i:j].copy()  # line 10"),
        ({"tensor": True}, "window = self.series[i:j].clone()  # line 10"),
        ({"mend_text": "window = self.a + self.b"}, "window = (self.a + self.b).copy()  # line 10"),
        ({"mend_text": "window, label = self.items[i]"}, "window = window.copy()  # before line 12"),
        ({"mend_text": ""}, "window = window.copy()  # before line 12"),
        (
            {"mend_text": "", "name": ""},
            "item = self.data[index].copy()  # of a tensor: .clone(); then work on the copy",
        ),
    ],
)
def test_the_fix_is_in_the_line_that_takes_the_view(facts: dict[str, Any], code: str) -> None:
    (found,) = judged(**facts)
    assert isinstance(found, Finding)
    assert found.location.line == 12
    assert found.fixes[0].code == code


def test_what_could_not_be_copied_is_said() -> None:
    assert [type(found) for found in judged(failure="the copy failed")] == [Abstention]
    assert list(DataChangedByAccess().judge(Builder(steps=40).done())) == []
