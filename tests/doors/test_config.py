"""`[tool.netdoctor]`: where it is looked for, what it may say, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from netdoctor.config import Settings, load
from netdoctor.errors import MisuseError
from netdoctor.finding import Finding, Severity
from netdoctor.report import Report

FULL = """
[tool.netdoctor]
select = ["dead-relu", "nan-input"]
ignore = ["dead-relu:body.*"]
advice = true
fail-on = "error"
budget = 12
experiments = false
[tool.netdoctor.thresholds.dead-relu]
error_share = 0.6
warning-share = 1
"""


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_every_setting_is_read(tmp_path: Path) -> None:
    assert load(project(tmp_path, FULL)) == Settings(
        select=("dead-relu", "nan-input"),
        ignore=("dead-relu:body.*",),
        thresholds={"dead-relu": {"error_share": 0.6, "warning_share": 1.0}},
        advice=True,
        fail_on="error",
        budget=12.0,
        experiments=False,
    )


def test_the_nearest_file_with_the_table_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    project(tmp_path, "[tool.netdoctor]\nbudget = 1")
    project(inner, "[tool.ruff]\nline-length = 80")
    assert load(inner).budget == 1.0
    project(tmp_path / "a", "[tool.netdoctor]\nbudget = 2")
    assert load(inner).budget == 2.0
    project(inner, "[tool.netdoctor]\n")
    assert load(inner) == Settings()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("selct = []", "has no selct: did you mean select?"),
        ("zzz = 1", "has no zzz: there are select, ignore, thresholds, advice, fail-on, budget, experiments"),
        ("select = 'dead-relu'", "select must be a list of names of checks, not 'dead-relu'"),
        ("ignore = [1]", "ignore must be a list of names of checks"),
        ("advice = 1", "advice must be true or false, not 1"),
        ("fail-on = 'advice'", "fail-on must be 'error' or 'warning' or 'never', not 'advice'"),
        ("fail-on = []", "fail-on must be 'error'"),
        ("budget = '60'", "budget must be a number"),
        ("budget = true", "budget must be a number"),
        ("budget = nan", "budget must be a number"),
        ("budget = -1", "budget must be a number of seconds, 0 or more"),
        ("thresholds = 3", "thresholds must be one table of numbers for each check"),
        ("thresholds.dead-relu = 3", "thresholds must be one table"),
        ("thresholds.dead-relu.error_share = 'x'", "thresholds must be one table"),
    ],
)
def test_a_wrong_setting_is_named(table: str, says: str, tmp_path: Path) -> None:
    project(tmp_path, f"[tool.netdoctor]\n{table}")
    with pytest.raises(MisuseError) as caught:
        load(tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path / "pyproject.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[tool", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(MisuseError, match=r"pyproject\.toml is not TOML: "):
        load(tmp_path)


@pytest.mark.parametrize("content", ["tool = 3", "[tool]\nnetdoctor = 3", "[[tool.netdoctor]]\n"])
def test_tables_of_the_wrong_kind(content: str, tmp_path: Path) -> None:
    project(tmp_path, content)
    if content == "tool = 3":
        assert load(tmp_path) == Settings()
    else:
        with pytest.raises(MisuseError, match="must be a table"):
            load(tmp_path)


def test_what_is_given_wins_and_ignore_adds() -> None:
    settings = Settings(select=("a",), ignore=("b",), budget=5.0)
    changed = settings.changed(select=("c",), ignore=["d"], budget=None, fail_on="never")
    assert changed == Settings(select=("c",), ignore=("b", "d"), budget=5.0, fail_on="never")
    with pytest.raises(MisuseError, match="fail-on must be"):
        settings.changed(fail_on="sometimes")


@pytest.mark.parametrize(
    ("fail_on", "failing"), [("error", ["error"]), ("warning", ["error", "warning"]), ("never", [])]
)
def test_what_fails(fail_on: str, failing: list[str]) -> None:
    findings = tuple(Finding("c", "t", severity, "") for severity in Severity)
    found = Settings(fail_on=fail_on).failing(Report("t", "sick", 1, findings))
    assert [finding.severity.value for finding in found] == failing
