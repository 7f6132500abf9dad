from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netdoctor.errors import MisuseError
from netdoctor.finding import (
    Abstention,
    Certainty,
    Evidence,
    Finding,
    Fix,
    Location,
    Measured,
    Reach,
    Severity,
    Trial,
    Verdict,
)
from netdoctor.recording import Stat
from netdoctor.render import jsonfile
from netdoctor.render.atomic import write_text
from netdoctor.report import Crash, Experiment, Report
from netdoctor.reportfile import from_dict
from tests.render import builders

TEXT = st.text(max_size=12)  # surrogates included: file names may hold them
NUMBER = st.floats(allow_nan=False)  # NaN is not equal to itself; it has a test of its own
LOSSES = st.lists(NUMBER, max_size=3).map(tuple)
COUNT = st.integers(0, 9)
LOCATIONS = st.builds(
    Location,
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | COUNT,
    TEXT,
    st.none() | COUNT,
    st.lists(COUNT, max_size=3).map(tuple),
)
STAT = st.none() | st.sampled_from(list(Stat))
EVIDENCE = st.builds(Evidence, TEXT, NUMBER, TEXT, NUMBER, TEXT, st.none(), STAT)
MEASURED = st.none() | st.builds(Measured, TEXT, NUMBER, NUMBER, TEXT)
TRIALS = st.builds(Trial, st.sampled_from(list(Verdict)), LOSSES, LOSSES, COUNT, NUMBER, TEXT, measured=MEASURED)
FIXES = st.builds(Fix, TEXT, TEXT, TEXT, st.sampled_from(list(Reach)), st.none() | TRIALS)
SEVERITY = st.sampled_from(list(Severity))
SYMPTOMS = st.builds(Finding, TEXT, TEXT, SEVERITY, st.just(""), LOCATIONS)


def some(strategy: st.SearchStrategy[Any], most: int = 2) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=most).map(tuple)


FINDINGS = st.builds(
    Finding, TEXT, TEXT, SEVERITY, TEXT, LOCATIONS, some(EVIDENCE), some(FIXES),
    st.sampled_from(list(Certainty)), st.none() | COUNT, some(TEXT), NUMBER, some(SYMPTOMS),
)  # fmt: skip
REPORTS = st.builds(
    Report, TEXT, st.sampled_from(["sick", "healthy", "not observed"]), COUNT, some(FINDINGS), some(FINDINGS, 1),
    some(st.builds(Experiment, TEXT, TEXT, TEXT)), some(st.builds(Abstention, TEXT, TEXT)),
    some(st.builds(Crash, TEXT, TEXT)), some(TEXT), some(TEXT), TEXT, TEXT, TEXT, NUMBER, NUMBER,
    st.dictionaries(TEXT, st.tuples(NUMBER, NUMBER), max_size=2),
)  # fmt: skip


@given(REPORTS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "report.json"
    jsonfile.write(report, path)
    assert jsonfile.load(path) == report


@pytest.mark.parametrize("report", [builders.sick(), builders.healthy(), builders.unseen(), builders.evil()])
def test_sites_and_nan_survive_as_they_are_written(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "report.json"
    jsonfile.write(report, path)
    again = jsonfile.load(path)
    assert again.to_json() == report.to_json()
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_sites_come_back_with_their_role_and_name() -> None:
    evidence = from_dict(builders.sick().to_dict()).findings[0].evidence
    assert evidence[0].site is not None
    assert evidence[0].site.parameter == "body.0.weight"
    assert evidence[1].site is not None
    assert evidence[1].site.module == "body.5"
    assert evidence[2].site is None


def test_named_numbers_are_numbers_and_texts_stay_texts() -> None:
    data = json.loads(jsonfile.render(builders.sick()))
    data["target"] = "NaN"
    report = from_dict(data)
    assert report.target == "NaN"
    assert math.isnan(report.losses["loss"][1])


def test_keys_of_later_versions_are_passed_over() -> None:
    assert from_dict(builders.sick().to_dict() | {"new": 1}) == from_dict(builders.sick().to_dict())


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("format",), 2, "format 2"),
        (("format",), None, "report.format"),
        (("verdict",), "ill", "report.verdict"),
        (("steps",), "3", "report.steps"),
        (("steps",), True, "report.steps"),
        (("findings",), {}, "report.findings"),
        (("findings", 0), 3, "report.findings[0]"),
        (("findings", 0, "severity"), "grave", "report.findings[0].severity"),
        (("findings", 0, "severity"), [], "report.findings[0].severity"),
        (("findings", 0, "evidence", 0, "limit"), "much", "evidence[0].limit"),
        (("findings", 0, "evidence", 0, "limit"), 10**400, "evidence[0].limit"),
        (("findings", 0, "evidence", 0, "site"), "nowhere", "evidence[0].site"),
        (("findings", 0, "fixes", 0, "trial", "control"), [None], "fixes[0].trial.control"),
        (("findings", 0, "location"), None, "findings[0].location"),
        (("losses", "loss"), [1.0], "losses.loss"),
        (("passed",), [1], "report.passed"),
        (("cost",), None, "report.cost"),
    ],
)
def test_bad_entries_are_named(path: tuple[str | int, ...], value: object, named: str) -> None:
    data: Any = json.loads(jsonfile.render(builders.sick()))
    entry = data
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(MisuseError, match="report") as raised:
        from_dict(data)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}"]
)
def test_files_that_are_no_report(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(MisuseError, match=r"x\.json"):
        jsonfile.load(path)


def test_missing_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MisuseError, match="cannot read"):
        jsonfile.load(tmp_path / "none.json")
    jsonfile.write(builders.sick(), tmp_path / "big.json")
    monkeypatch.setattr(jsonfile, "LARGEST", 100)
    with pytest.raises(MisuseError, match="larger"):
        jsonfile.load(tmp_path / "big.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(MisuseError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_follows_links_and_does_not_replace_devices(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    write_text(os.devnull, "gone")
    assert not Path(os.devnull).is_file()


def test_writing_into_no_folder_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="cannot write"):
        write_text(tmp_path / "none" / "x", "")


def test_a_notebook_shows_a_report_in_short_and_escaped() -> None:
    shown = builders.sick()._repr_html_()
    assert "The weights of 3 layers start 16 times larger" in shown
    assert "train.py:14 · body.0" in shown
    assert "nn.init.kaiming_normal_(module.weight, nonlinearity=&quot;relu&quot;)" in shown
    assert "<script" not in builders.evil()._repr_html_()
