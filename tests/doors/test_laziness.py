"""What must not load torch, looked at in fresh interpreters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import netdoctor
from netdoctor.check import Check
from tests.doors.commands import python

LOADED = """
import json, sys
sys.argv[1:] = {arguments!r}
from netdoctor.cli import main
try:
    main()
except SystemExit as stop:
    print()
    print(json.dumps([stop.code, sorted(sys.modules)]))
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["--version"], ["checks"], ["explain", "{check}"], ["run", "none.py"]],
    ids=" ".join,
)
def test_commands_that_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    from netdoctor import catalogue

    name = catalogue.all_checks()[0].name
    arguments = [argument.format(check=name) for argument in arguments]
    ended = python("-c", LOADED.format(arguments=arguments), folder=tmp_path)
    code, modules = json.loads(ended.stdout.splitlines()[-1])
    assert code == (2 if "none.py" in arguments else 0), ended.stderr
    assert not {"torch", "matplotlib"} & set(modules)


def test_checks_and_explain_say_what_the_docstrings_say(tmp_path: Path) -> None:
    from netdoctor import catalogue

    listed = python("-m", "netdoctor", "checks", folder=tmp_path)
    for check in catalogue.all_checks():
        (row,) = [line for line in listed.stdout.splitlines() if line.split()[0] == check.name]
        assert check.family in row
    check = catalogue.all_checks()[0]
    explained = python("-m", "netdoctor", "explain", check.name, folder=tmp_path)
    assert explained.returncode == 0
    assert (type(check).__doc__ or "?").strip().splitlines()[0] in explained.stdout


def test_importing_netdoctor_loads_nothing_else(tmp_path: Path) -> None:
    code = "import sys, netdoctor; print([m for m in sys.modules if m.startswith('netdoctor')], 'numpy' in sys.modules)"
    assert python("-c", code, folder=tmp_path).stdout == "['netdoctor'] False\n"


def test_the_public_names() -> None:
    values = {"Check", "Finding", "Recording", "Report", "__version__"}
    assert set(netdoctor.__all__) == values | {"diagnose", "examine", "watch"}
    assert netdoctor.Check is Check
    assert set(netdoctor.__all__) == set(dir(netdoctor))
    with pytest.raises(AttributeError, match="has no attribute 'wach'"):
        _ = netdoctor.wach
    assert "netdoctor.check" in sys.modules
