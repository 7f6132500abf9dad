"""GitHub's workflow commands: one line per finding, whatever its text holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from netdoctor.finding import Finding, Location, Severity
from netdoctor.render import github
from netdoctor.report import Report
from tests.render import builders


def of(finding: Finding, target: str = "train.py") -> str:
    return github.render(Report(target, "sick", 1, (finding,)), advice=True)


def test_one_line_per_finding_in_order() -> None:
    lines = github.render(builders.sick()).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning"]
    assert lines[0].startswith("::error file=train.py,title=netdoctor%3A poor-initialization,line=14::The weights of")
    assert "%0AFix: Draw the weights" in lines[0]
    assert github.render(builders.healthy()) == ""
    assert github.render(builders.healthy(), advice=True).startswith("::notice file=train.py,title=")


def test_hostile_text_starts_no_command_of_its_own() -> None:
    text = github.render(builders.evil())
    assert len(text.splitlines()) == 7
    assert all(line.startswith("::error file=") for line in text.splitlines())
    assert "\x1b" not in text
    (line,) = of(Finding("a,b::c", "100%\r\n::error::x", Severity.ERROR, "")).splitlines()
    assert line == "::error file=train.py,title=netdoctor%3A a%2Cb%3A%3Cc::100%25 ::error::x".replace("%3C", "%3A")


@pytest.mark.parametrize(
    ("file", "shown"), [("sub/train.py", "sub/train.py"), ("/elsewhere/train.py", "/elsewhere/train.py"), ("", None)]
)
def test_files_are_named_from_the_repositorys_root(
    file: str, shown: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    file = str(tmp_path / file) if file.startswith("sub") else file
    line = of(Finding("c", "t", Severity.WARNING, "", Location(file=file or None, line=3 if file else None)), "-m pkg")
    assert ("file=" in line) == (shown is not None)
    assert shown is None or f"file={shown},title=netdoctor%3A c,line=3::t" in line
