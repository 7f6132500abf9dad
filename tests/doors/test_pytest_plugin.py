"""The pytest plugin in suites of its own, each in a fresh interpreter, over the fake session."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.doors.commands import python

# Installed, pytest loads the plugin by itself; in a bare checkout it is named.
INSTALLED = any(point.name == "netdoctor" for point in entry_points(group="pytest11"))
LOAD = [] if INSTALLED else ["-p", "netdoctor.pytest_plugin"]
FAKE = ["-p", "tests.doors.plugin_fake"]
PLAIN = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist"]  # these take longest to load


def pytest_run(folder: Path, text: str, *options: str, session: str = "healthy") -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    return python("-m", "pytest", *LOAD, *PLAIN, *options, folder=folder, FAKE_SESSION=session)


def test_loading_it_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import json, sys\n"
        "def pytest_sessionfinish(session):\n"
        "    has = session.config.pluginmanager.has_plugin\n"
        "    loaded = has('netdoctor') or has('netdoctor.pytest_plugin')\n"
        "    json.dump([loaded, sorted(sys.modules)], open('loaded.json', 'w'))\n"
    )
    for options in (["--co"], []):
        ended = pytest_run(tmp_path, "def test_plain():\n    assert True", *options)
        assert ended.returncode == 0, ended.stdout
        loaded, modules = json.loads((tmp_path / "loaded.json").read_text())
        assert loaded
        assert {name for name in modules if name.split(".")[0] in {"torch", "numpy", "rich"}} == set()


def test_markers_and_flag_are_documented(tmp_path: Path) -> None:
    assert "@pytest.mark.netdoctor(" in pytest_run(tmp_path, "", "--markers").stdout
    assert "--netdoctor" in pytest_run(tmp_path, "", "--help").stdout


MARKED = "import pytest\n@pytest.mark.netdoctor({0})\ndef test_it():\n    {1}\ndef test_other(): pass"


@pytest.mark.parametrize(
    ("session", "marker", "failed"),
    [
        ("healthy", "", 0),
        ("warning", "", 1),
        ("warning", "fail_on='error'", 0),
        ("sick", "fail_on='error'", 1),
        ("sick", "fail_on='never'", 0),
        ("unobserved", "", 0),
    ],
)
def test_a_marked_test_is_watched(session: str, marker: str, failed: int, tmp_path: Path) -> None:
    ended = pytest_run(tmp_path, MARKED.format(marker, "pass"), *FAKE, session=session)
    assert ended.returncode == failed
    assert f"{2 - failed} passed" in ended.stdout
    if failed:
        message = "fake-check: a made-up finding"
        assert message in ended.stdout
        assert "at train.py:3 · body.3" in ended.stdout
        assert "fix: Change it." in ended.stdout
        assert "- Captured netdoctor call -" in ended.stdout  # the section with the whole report
        assert "pytest_plugin.py" not in ended.stdout
        assert "1 root cause found" in ended.stdout


def test_the_markers_options_reach_the_session(tmp_path: Path) -> None:
    marker = "ignore=['nan-input:a.*'], select=['dead-relu'], budget=5, experiments=False"
    ended = pytest_run(tmp_path, MARKED.format(marker, "pass"), *FAKE, session="sick")
    for part in ("select=('dead-relu',)", "ignore=('nan-input:a.*',)", "budget=5.0", "experiments=False"):
        assert part in ended.stdout.replace("\n", "")
    assert "test_it.py::test_it" in ended.stdout


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("budged=5", "the marker netdoctor has no 'budged': there are select, ignore"),
        ("fail_on='x'", "the setting fail-on must be"),
        ("select=['dead-relo']", "unknown check 'dead-relo'"),
    ],
)
def test_a_wrong_marker_fails_in_one_line(marker: str, says: str, tmp_path: Path) -> None:
    ended = pytest_run(tmp_path, MARKED.format(marker, "pass"), *FAKE)
    assert ended.returncode == 1
    assert says in ended.stdout
    assert "Traceback" not in ended.stdout


def test_a_test_that_fails_by_itself_keeps_its_failure_and_gets_the_report(tmp_path: Path) -> None:
    ended = pytest_run(tmp_path, MARKED.format("", "assert 1 == 2"), *FAKE, session="sick")
    assert "assert 1 == 2" in ended.stdout
    assert "Failed: fake-check" not in ended.stdout
    assert "1 root cause found" in ended.stdout


def test_the_flag_watches_every_test(tmp_path: Path) -> None:
    ended = pytest_run(tmp_path, "def test_a(): pass\ndef test_b(): pass", "--netdoctor", *FAKE, session="sick")
    assert "2 failed" in ended.stdout
    assert "2 passed" in pytest_run(tmp_path, "def test_a(): pass\ndef test_b(): pass", *FAKE, session="sick").stdout


def test_findings_become_junit_properties(tmp_path: Path) -> None:
    pytest_run(tmp_path, MARKED.format("", "pass"), *FAKE, "--junit-xml=j.xml", session="sick")
    assert '<property name="netdoctor" value="fake-check: a made-up finding' in (tmp_path / "j.xml").read_text()


def test_settings_of_the_project_count(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n[tool.netdoctor]\nfail-on = 'never'")
    assert pytest_run(tmp_path, MARKED.format("", "pass"), *FAKE, session="sick").returncode == 0


@pytest.mark.parametrize(
    ("session", "body", "says"),
    [
        ("healthy", "netdoctor.assert_healthy(1, 2, 3)", ""),
        ("sick", "netdoctor.assert_healthy(1, 2, 3)", "fake-check: a made-up finding"),
        ("unobserved", "netdoctor.assert_healthy(1, 2, 3)", "netdoctor saw no training step"),
        ("healthy", "netdoctor.watch(); netdoctor.log(a=1.0); netdoctor.assert_healthy()", ""),
        ("sick", "netdoctor.watch(); netdoctor.assert_healthy()", "fake-check: a made-up finding"),
        ("sick", "\n    with netdoctor.watch(): pass\n    netdoctor.assert_healthy()", "fake-check"),
        ("sick", "netdoctor.watch()", ""),
        ("healthy", "netdoctor.assert_healthy()", "nothing was watched"),
        ("healthy", "netdoctor.assert_overfits(1, 2, 3)", ""),
        ("sick", "netdoctor.assert_overfits(1, 2, 3)", "overfit-tiny-batch failed: 8 samples could not be fitted"),
        ("sick", "netdoctor.assert_overfits(1, 2, 3)", "likely cause: fake-check: a made-up finding"),
        ("unobserved", "netdoctor.assert_overfits(1, 2, 3)", "netdoctor saw no training step"),
        ("warning", "netdoctor.assert_overfits(1, 2, 3)", "netdoctor could not tell whether the model fits"),
        ("sick", "netdoctor.assert_overfits(1, 2, 3, to=0.5)", ""),
        (
            "healthy",
            "netdoctor.assert_overfits(1, 2, 3, to=0.4)",
            "loss went from 2 to 0.5 in 3 steps, not down to 0.4",
        ),
    ],
)
def test_the_fixture(session: str, body: str, says: str, tmp_path: Path) -> None:
    ended = pytest_run(tmp_path, f"def test_it(netdoctor):\n    {body}", *FAKE, session=session)
    assert ended.returncode == (1 if says else 0), ended.stdout
    assert says in ended.stdout
    if says:
        assert "pytest_plugin.py" not in ended.stdout  # the failure points at the test


UNITTEST = """
import unittest, pytest
class TestIt(unittest.TestCase):
    @pytest.mark.netdoctor
    def test_marked(self): pass
    @pytest.mark.netdoctor
    def test_fails(self): self.assertEqual(1, 2)
    def test_other(self): pass
"""


def test_unittest_style_tests_are_watched_too(tmp_path: Path) -> None:
    ended = pytest_run(tmp_path, UNITTEST, *FAKE, session="sick")
    assert "2 failed, 1 passed" in ended.stdout
    assert "AssertionError: 1 != 2" in ended.stdout
    assert ended.stdout.count("Failed: fake-check") == 1


MANY = "import pytest\n@pytest.mark.netdoctor\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n): pass\n"


def test_the_summary_counts_what_was_watched(tmp_path: Path) -> None:
    ended = pytest_run(tmp_path, MANY, *FAKE, session="sick")
    assert "- netdoctor -" in ended.stdout.replace("=", "-")
    assert "4 trainings watched, 4 findings" in ended.stdout
    assert "  fake-check: test_it.py::test_it[0], test_it.py::test_it[1], test_it.py::test_it[2] and 1 more\n" in (
        ended.stdout
    )
    assert "4 trainings watched, nothing found" in pytest_run(tmp_path, MANY, *FAKE).stdout
    assert "watched" not in pytest_run(tmp_path, "def test_it(): pass", *FAKE).stdout


def test_workers_of_xdist_send_what_they_found(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(MANY)
    options = ["-p", "no:cacheprovider", "-n", "2", "--junit-xml=j.xml"]
    ended = python("-m", "pytest", *LOAD, *FAKE, *options, folder=tmp_path, FAKE_SESSION="sick")
    assert "4 failed" in ended.stdout
    assert "4 trainings watched, 4 findings" in ended.stdout
    text = (tmp_path / "j.xml").read_text()
    assert text.count('<property name="netdoctor" value="fake-check') == 4
    assert text.count('<property name="netdoctor_verdict" value="sick"') == 4


@pytest.mark.parametrize(
    ("ini", "failed", "says"),
    [
        ("netdoctor = true", 1, "Failed: fake-check"),
        ("netdoctor = true\nnetdoctor_fail_on = never", 0, ""),
        ("netdoctor = true\nnetdoctor_ignore = nan-input:a.* double-softmax", 1, "ignore=('nan-input:a.*', 'double-s"),
        ("netdoctor = true\nnetdoctor_budget = 7\nnetdoctor_experiments = false", 1, "budget=7.0, experiments=False"),
        ("netdoctor = true\nnetdoctor_budget = much", 1, "netdoctor_budget must be a number of seconds, not 'much'"),
        ("netdoctor = false", 0, ""),
    ],
)
def test_ini_options(ini: str, failed: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}")
    ended = pytest_run(tmp_path, "def test_it(): pass", *FAKE, session="sick")
    assert ended.returncode == failed, ended.stdout
    assert says in ended.stdout


def test_the_closest_marker_wins_and_the_others_still_count(tmp_path: Path) -> None:
    text = (
        "import pytest\npytestmark = pytest.mark.netdoctor(budget=3, fail_on='never')\n"
        "@pytest.mark.netdoctor(fail_on='error')\ndef test_it(): pass\n"
    )
    ended = pytest_run(tmp_path, text, *FAKE, session="sick")
    assert ended.returncode == 1
    assert "budget=3.0" in ended.stdout


def test_a_suite_that_does_not_use_it_pays_next_to_nothing(tmp_path: Path) -> None:
    """The bar is a millisecond per test; what is timed is the hook's own part of a call."""
    (tmp_path / "conftest.py").write_text(
        "import time, pytest\n"
        "spent = []\n"
        "@pytest.hookimpl(wrapper=True)\n"
        "def pytest_runtest_call(item):\n"
        "    from netdoctor.pytest_plugin import pytest_runtest_call as own\n"
        "    start = time.perf_counter()\n"
        "    hook = own(item); next(hook)\n"
        "    try: hook.send(None)\n"
        "    except StopIteration: pass\n"
        "    spent.append(time.perf_counter() - start)\n"
        "    return (yield)\n"
        "def pytest_sessionfinish(): print('SPENT', sorted(spent)[len(spent) // 2])\n"
    )
    ended = pytest_run(tmp_path, "import pytest\n@pytest.mark.parametrize('n', range(50))\ndef test_it(n): pass", "-s")
    assert float(ended.stdout.partition("SPENT ")[2].split()[0]) < 1e-3
