"""The user's lines around a finding, and fixes as changes of them."""

from __future__ import annotations

import pytest

from netdoctor.finding import Fix, Location
from netdoctor.recording import Excerpt, Recording
from netdoctor.render.source import NEW, OLD, SAME, Line, change, context

TRAIN = """\
    for x, y in loader:

        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()

        total += loss.item()
""".splitlines()
RECORDING = Recording(excerpts=[Excerpt("other.py", 1, ("no",)), Excerpt("train.py", 10, tuple(TRAIN))])


def at(line: int, text: str = "") -> Location:
    return Location(file="train.py", line=line, text=text)


def test_the_lines_around_without_their_common_indentation() -> None:
    assert context(at(13), RECORDING) == [
        Line(10, "for x, y in loader:"),
        Line(11, ""),
        Line(12, "    loss = criterion(model(x), y)"),
        Line(13, "    loss.backward()", OLD),
        Line(14, "    optimizer.step()"),
        Line(15, ""),
        Line(16, "    total += loss.item()"),
    ]


def test_blank_lines_at_the_ends_are_left_out() -> None:
    assert [line.number for line in context(at(14), RECORDING)] == [12, 13, 14, 15, 16]
    assert [line.number for line in context(at(10), RECORDING)] == [10, 11, 12, 13]


@pytest.mark.parametrize("recording", [None, Recording(), RECORDING])
def test_without_an_excerpt_the_line_stands_alone(recording: Recording | None) -> None:
    assert context(at(99, "\tx = 1\x1b[31m\ny"), recording) == [Line(99, "x = 1 y", OLD)]
    assert context(at(99), recording) == []
    assert context(Location(text="x = 1"), recording) == [Line(None, "x = 1", OLD)]
    assert context(Location("body.3"), recording) == []


def changed(code: str, line: int = 13) -> list[tuple[str, str]]:
    return [(line.sign, line.text) for line in change(Fix("f", "s", code), at(line), context(at(line), RECORDING))]


def test_a_code_that_holds_the_line_adds_around_it() -> None:
    assert changed("optimizer.zero_grad()\nloss.backward()") == [
        (SAME, ""),
        (SAME, "    loss = criterion(model(x), y)"),
        (NEW, "    optimizer.zero_grad()"),
        (SAME, "    loss.backward()"),
        (SAME, "    optimizer.step()"),
        (SAME, ""),
    ]


def test_a_code_that_is_like_the_line_replaces_it() -> None:
    lines = changed("loss = criterion(model(x).squeeze(1), y)  # both (batch,)", 12)
    assert lines[2:4] == [
        (OLD, "    loss = criterion(model(x), y)"),
        (NEW, "    loss = criterion(model(x).squeeze(1), y)  # both (batch,)"),
    ]
    assert changed("# why\nloss = criterion(model(x)[:, 0], y)", 12)[2][0] == OLD


@pytest.mark.parametrize("code", ["", "\n", "torch.nn.init.zeros_(model.bias)", "# only a word"])
def test_a_code_for_another_place_is_no_change_of_this_line(code: str) -> None:
    assert changed(code) == []
    assert change(Fix("f", "s", "x = 1"), Location(), []) == []


def test_hostile_lines_stay_lines() -> None:
    excerpt = Excerpt("train.py", 1, ("a", "\x1b[31m</code><script>", "‮b", "x" * 9999))
    lines = context(at(2), Recording(excerpts=[excerpt]))
    assert [line.text for line in lines[:3]] == ["a", "</code><script>", "b"]
    assert len(lines[3].text) <= 400
