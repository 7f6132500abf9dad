"""The commands for files of earlier runs, in fresh interpreters without torch, and what they stand on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netdoctor import excerpts, judging
from netdoctor.finding import Certainty, Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Excerpt, Kind, Layer, Recording, SourceLine
from netdoctor.recordingfile import Saved, lines
from netdoctor.report import Report
from tests.doors.commands import fake, netdoctor, python
from tests.doors.test_laziness import LOADED
from tests.render import builders

GROWS = "exploding-activations"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made, report = builders.recording(), builders.sick()
    (tmp_path / "a.ndr").write_text("".join(lines(made, report)))
    (tmp_path / "a.json").write_text(report.to_json())
    (tmp_path / "b.json").write_text(builders.healthy().to_json())
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["report", "a.ndr", "--html", "r.html"], ["compare", "a.ndr", "b.json"], ["schema"]]
)
def test_saved_files_are_judged_and_drawn_without_torch(arguments: list[str], folder: Path) -> None:
    ended = python("-c", LOADED.format(arguments=arguments), folder=folder)
    code, modules = json.loads(ended.stdout.splitlines()[-1])
    assert code in (0, None), ended.stderr
    assert "torch" not in modules


def test_a_recording_is_judged_again_and_written_in_every_format(folder: Path) -> None:
    files = {"json": "r.json", "html": "r.html", "markdown": "r.md", "junit": "r.xml", "sarif": "r.sarif"}
    options = [text for form, file in files.items() for text in (f"--{form}", file)]
    ended = netdoctor("report", *options, "a.ndr", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("netdoctor 0.1.0 · train.py")
    assert "The loss" in (folder / "r.html").read_text()
    assert json.loads((folder / "r.json").read_text())["steps"] == 100
    for form, file in files.items():
        assert f"netdoctor: {form} report: {file}\n" in ended.stderr


def test_other_checks_and_limits_count_and_fail_on_sets_the_exit_code(folder: Path) -> None:
    def verdict(*options: str) -> tuple[int, list[str]]:
        ended = netdoctor("report", "--json", "r.json", *options, "a.ndr", folder=folder)
        found = json.loads((folder / "r.json").read_text())["findings"]
        return ended.returncode, [finding["check"] for finding in found]

    (folder / "a.ndr").write_text("".join(lines(builders.recording(depth=8))))
    code, found = verdict()
    assert (code, found) == (0, ["poor-initialization"])  # which explains the growth
    assert verdict("--fail-on", "warning")[0] == 1
    assert verdict("--select", GROWS) == (0, [GROWS])
    assert verdict("--ignore", "poor-initialization")[1] == [GROWS]
    limit = ("--threshold", f"{GROWS}.decades=9")
    assert verdict("--select", GROWS, "--fail-on", "warning", *limit) == (0, [])
    (folder / "pyproject.toml").write_text("[tool.netdoctor]\nignore = ['poor-initialization']")
    assert verdict()[1] == [GROWS]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "--select", GROWS, "a.json"], "a.json is a finished report: only a recording (`run --save`)"),
        (["report", "--threshold", "dead-relu", "a.ndr"], "is not of the form NAME.LIMIT=NUMBER"),
        (["report", "--threshold", "dead-relu.color=1", "a.ndr"], "dead-relu has no threshold 'color'"),
        (["report", "--json", "no/r.json", "a.ndr"], "there is no folder"),
        (["compare", "a.ndr", "none.json"], "cannot read none.json"),
        (["compare", "--json", ".", "a.ndr", "a.json"], "it is a folder"),
        (["report", "cut.ndr"], "cut.ndr, line 2: not JSON"),
    ],
)
def test_misuse_is_one_line(arguments: list[str], says: str, folder: Path) -> None:
    (folder / "cut.ndr").write_text('{"format": 1, "holds": "recording"}\n{]\n{}\n')
    ended = netdoctor(*arguments, folder=folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1
    assert says in ended.stderr


def test_run_saves_what_report_opens(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('out')")
    ended = fake("run", "--save", "r.ndr", "train.py", folder=tmp_path, session="sick")
    assert "netdoctor: saved recording: r.ndr\n" in ended.stderr
    assert netdoctor("report", "r.ndr", folder=tmp_path).returncode == 0


def tried(verdict: Verdict = Verdict.CURED) -> Finding:
    fix = Fix("zero-bias", "Start at 0.", "x", trial=Trial(verdict, (2.0,), (0.1,), 1))
    return Finding(GROWS, "t", Severity.ERROR, "", Location("a"), fixes=(fix,), certainty=Certainty.PROVEN)


def test_trials_of_the_time_are_kept_where_the_same_is_found_again() -> None:
    again = replace(tried(), fixes=(Fix("zero-bias", "Start at 0.", "x"),), certainty=Certainty.MEASURED, title="new")
    elsewhere = replace(again, location=Location("b"))
    before, after = Report("", "sick", 1, (tried(),)), Report("", "sick", 1, (elsewhere, again))
    first, second = judging.with_trials(after, before, ()).findings
    assert (first.title, first.certainty, first.fixes) == ("new", Certainty.PROVEN, tried().fixes)
    assert second == elsewhere


def test_judging_a_file_is_judging_its_recording(folder: Path) -> None:
    made = builders.recording(depth=8)
    (folder / "b.ndr").write_text("".join(lines(made)))
    assert (
        judging.diagnose(folder / "b.ndr") == judging.diagnose(made) == judging.judged(Saved(made), judging.Options())
    )


def test_excerpts_hold_the_lines_around_every_named_place(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text("".join(f"line {n}\n" for n in range(1, 41)))
    line = SourceLine(str(file), 10, "line 10")
    recording = Recording(layers=[Layer("a", "Linear", Kind.LINEAR, 0, source=line)])
    near, far, changed, gone = (
        Finding("c", "t", Severity.ERROR, "", Location(file=str(name), line=at, text=text))
        for name, at, text in ((file, 16, ""), (file, 39, "line 39"), (file, 30, "another"), ("none.py", 3, ""))
    )
    found = excerpts.gather(recording, Report("", "sick", 1, (near, far, changed, gone)))
    first, last = range(6, 21), range(35, 41)
    assert found == [
        Excerpt(str(file), 6, tuple(f"line {n}" for n in first)),
        Excerpt(str(file), 35, tuple(f"line {n}" for n in last)),
    ]


def test_excerpts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpts, "MOST", 20)
    file = tmp_path / "long.py"
    file.write_text("\n".join("x" * 1000 for _ in range(1000)))
    layers = [Layer("a", "L", Kind.OTHER, n, source=SourceLine(str(file), n)) for n in range(10, 900, 50)]
    found = excerpts.gather(Recording(layers=layers), Report("", "sick", 1))
    assert [len(excerpt.lines) for excerpt in found] == [9, 9]
    assert {len(line) for excerpt in found for line in excerpt.lines} == {400}


def report(*findings: Finding, **more: Any) -> Report:
    return Report(**({"target": "a.py", "verdict": "sick", "steps": 3, "findings": findings} | more))


def test_github_annotations_are_asked_for_or_on_in_github_actions(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    actions = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(tmp_path)}

    def annotations(*options: str, **environment: str) -> list[str]:
        ended = python(
            Path(__file__).with_name("fake_session.py"), "run", *options, "train.py",
            folder=tmp_path, FAKE_SESSION="sick", **({"GITHUB_ACTIONS": ""} | environment),
        )  # fmt: skip
        assert ended.stdout == ""
        return [line for line in ended.stderr.splitlines() if line.startswith("::")]

    (line,) = annotations(**actions)
    assert line.startswith("::error file=train.py,title=netdoctor%3A fake-check,line=3::a made-up finding")
    assert line.endswith("%0AFix: Change it.%0Ax = 1")
    assert len(annotations("--github")) == len(annotations("-q", "--github", **actions)) == 1
    assert annotations() == annotations("--no-github", **actions) == annotations("-q", **actions) == []
