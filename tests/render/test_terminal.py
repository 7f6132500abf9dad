from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.cells import cell_len

from netdoctor.finding import Finding, Fix, Location, Severity
from netdoctor.render import terminal
from tests.render import builders

Golden = Callable[[str, str], None]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_sick_at_widths(golden: Golden, width: int) -> None:
    golden(f"terminal-sick-{width}.txt", terminal.render(builders.sick(), width=width))


def test_colour(golden: Golden) -> None:
    golden("terminal-sick-colour.txt", terminal.render(builders.sick(), width=80, color=True))


def test_ascii(golden: Golden) -> None:
    text = terminal.render(builders.sick(), width=80, ascii_only=True)
    assert text.isascii()
    golden("terminal-sick-ascii.txt", text)


def test_verbose_with_advice(golden: Golden) -> None:
    golden("terminal-sick-verbose.txt", terminal.render(builders.sick(), width=80, verbose=True, advice=True))


def test_healthy(golden: Golden) -> None:
    text = terminal.render(builders.healthy(), width=80)
    assert len(text.splitlines()) <= 14
    golden("terminal-healthy.txt", text)


def test_not_observed(golden: Golden) -> None:
    golden("terminal-unseen.txt", terminal.render(builders.unseen(), width=80))


def test_first_screen_answers_what_why_where_and_what_to_do() -> None:
    screen = "\n".join(terminal.render(builders.sick(), width=80).splitlines()[:24])
    assert "start 16 times larger" in screen
    assert "1, above the limit of 0.25" in screen
    assert "train.py:14" in screen
    assert "14 │ nn.Linear(784, 512)," in screen
    assert "with it: 2.31 → 0.004 in 100 steps; without it: 2.31 → NaN at step 2" in screen


def test_code_can_be_pasted_at_any_width() -> None:
    code = "model = nn.Sequential(" + ", ".join(f"nn.Linear({n}, {n})" for n in range(30)) + ")\nif model:\n    pass"
    finding = replace(builders.remark(), severity=Severity.ERROR, fixes=(Fix("x", "Do", code),))
    lines = terminal.render(builders.sick(findings=(finding,)), width=40).splitlines()
    start = next(at for at, line in enumerate(lines) if "nn.Sequential" in line)
    indent = len(lines[start]) - len(lines[start].lstrip())
    assert "\n".join(line[indent:] for line in lines[start : start + 3]) == code


@pytest.mark.parametrize("width", [1, 40, 80, 300])
@pytest.mark.parametrize("verbose", [False, True])
def test_hostile_text_does_no_harm(width: int, verbose: bool) -> None:
    text = terminal.render(builders.evil(), width=width, verbose=verbose)
    assert not CONTROL.search(text)
    assert "[bold red]x[/]" in text.replace("\n", " ") or width < 80
    assert len(text) < 80_000


def test_no_line_is_wider_than_the_window_except_code() -> None:
    report = replace(builders.evil(), findings=tuple(replace(f, fixes=()) for f in builders.evil().findings))
    for width in (40, 80):
        assert max(cell_len(line) for line in terminal.render(report, width=width).splitlines()) <= width


def test_hidden_advice_is_counted_and_shown_when_asked_for() -> None:
    hidden, shown = (terminal.render(builders.healthy(), advice=advice) for advice in (False, True))
    assert "1 remark hidden" in hidden
    assert "weight_decay" not in hidden
    assert "hidden" not in shown
    assert "weight_decay" in shown


def test_lower_ranks_are_one_line_each_unless_verbose() -> None:
    many = builders.sick(
        findings=tuple(Finding("x", f"Fault {n}", Severity.ERROR, f"reason {n}", Location(f"m{n}")) for n in range(9))
    )
    text = terminal.render(many)
    assert "Fault 8" in text
    assert "reason 4" in text
    assert "reason 5" not in text
    assert "reason 8" in terminal.render(many, verbose=True)


class _Stream(io.TextIOWrapper):
    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_streams_that_cannot_encode_get_ascii(encoding: str) -> None:
    stream = _Stream(encoding, terminal=False)
    terminal.print_report(builders.sick(), stream)
    assert stream.text().isascii()
    assert "2.31 -> NaN" in stream.text()


@pytest.mark.parametrize(
    ("is_terminal", "environment", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour_follows_the_stream_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = _Stream("utf-8", is_terminal)
    terminal.print_report(builders.sick(), stream, width=80)
    assert ("\x1b[" in stream.text()) is coloured
