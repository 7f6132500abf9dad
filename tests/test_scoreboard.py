"""The scoreboard's arithmetic, on hand-made rows, and its place in the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.scoreboard import BEGIN, END, HEAD, Row, table
from tests.scripts import FIXTURES, ROOT


def _finding(
    check: str, severity: str = "error", module: str | None = None, verdict: str | None = None
) -> dict[str, Any]:
    trial = None if verdict is None else {"verdict": verdict}
    return {"check": check, "severity": severity, "location": {"module": module}, "fixes": [{"trial": trial}]}


def _row(findings: list[dict[str, Any]], cause: str | None = "dead-relu", place: str | None = "body.1") -> Row:
    return Row(FIXTURES / "dead_relu" / "sick.py", cause, place, findings, 2.0)


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([_finding("dead-relu", module="body.1", verdict="cured")], "| 1 | 1 | 1 | 0 | 1 | 1 | 2 |"),
        ([_finding("nan-input"), _finding("dead-relu", module="body.10")], "| 1 | 0 | 1 | 1 | 0 | 0 | 2 |"),
        ([_finding("nan-input", "warning")], "| 1 | 0 | 0 | 0 | 0 | 0 | 2 |"),
        (
            [_finding("lstm-forget-bias", "advice"), _finding("dead-relu", module="body.1.act")],
            "| 1 | 1 | 1 | 0 | 1 | 0 | 2 |",
        ),
        ([], "| 1 | 0 | 0 | 0 | 0 | 0 | 2 |"),
    ],
)
def test_a_sick_row(findings: list[dict[str, Any]], expected: str) -> None:
    lines = table([_row(findings)]).splitlines()
    assert lines[0] == HEAD
    assert lines[2] == f"| units {expected}"
    assert lines[3] == f"| **all** {expected}"


def test_false_alarms_are_counted_apart() -> None:
    healthy = Row(
        FIXTURES / "healthy" / "mlp.py", None, None, [_finding("dead-relu"), _finding("nan-input", "warning")], 3.0
    )
    lines = table([_row([]), healthy]).splitlines()
    assert "| healthy | 1 | 1 | 1 | 3 |" in lines
    assert "| cured | 0 | 0 | 0 | 0 |" in lines


def test_the_readme_has_a_place_for_the_table() -> None:
    text = Path(ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)
