"""Every fixture through the real command line: the whole list of findings, and nothing changed in the script's own run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts import FIXTURES, advised, expected, run_observed, run_plain

SCRIPTS = sorted(FIXTURES.glob("*/*.py"))
HEALTHY = set(FIXTURES.glob("healthy/*.py"))


def _id(script: Path) -> str:
    return f"{script.parent.name}/{script.stem}"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=_id)
def test_the_report_is_what_the_script_promises(script: Path) -> None:
    result = run_observed(script)
    assert result.report is not None, result.stderr
    assert not result.report["crashes"], result.report["crashes"]
    promised = expected(script)
    found = [(f["check"], f["location"]["module"]) for f in result.report["findings"] if f["severity"] != "advice"]
    assert [name for name, _ in found] == [name for name, _ in promised], result.stderr
    for (_, module), (_, place) in zip(found, promised, strict=True):
        assert place is None or _same_place(module, place), (module, place)
    advice = {f["check"] for f in result.report["findings"] if f["severity"] == "advice"}
    beside = advised(script.with_name("sick.py")) if script.name == "cured.py" else []
    assert set(advised(script)) <= advice
    assert advice.isdisjoint(set(beside) - set(advised(script)))
    assert result.code == (1 if promised else 0)  # a warning fails too: the level of --fail-on by default
    if script in HEALTHY:
        plain = run_plain(script)
        assert plain.code == 0, plain.stderr
        assert (result.stdout, result.digest) == (plain.stdout, plain.digest), "not the same to the last bit"


def _same_place(module: str | None, place: str) -> bool:
    return module is not None and (module == place or module.startswith(f"{place}.") or place.startswith(f"{module}."))


def test_every_check_of_a_fixture_exists() -> None:
    from netdoctor import catalogue

    known = {check.name for check in catalogue.all_checks()}
    assert {name for script in SCRIPTS for name, _ in expected(script)} <= known
    assert {name for script in SCRIPTS for name in advised(script)} <= known
    assert all(script.read_text().startswith("# expect: ") for script in SCRIPTS)
