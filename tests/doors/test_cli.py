"""The command line by itself, over a session without torch: what it prints where, writes, refuses and exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doors.commands import fake, netdoctor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("print('out')")
    return tmp_path


def refused(folder: Path, *arguments: str) -> str:
    """The one line with which a call is refused: exit code 2, nothing on stdout, the script not run."""
    ended = fake(*arguments, folder=folder)
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("netdoctor: ")
    return lines[0]


@pytest.mark.parametrize(
    ("session", "options", "code"),
    [
        ("healthy", [], 0),
        ("warning", [], 1),
        ("sick", [], 1),
        ("warning", ["--fail-on", "error"], 0),
        ("sick", ["--fail-on", "error"], 1),
        ("sick", ["--fail-on", "never"], 0),
        ("unobserved", [], 2),
        ("unobserved", ["--fail-on", "never"], 2),
        ("fault", [], 2),
        ("stop", [], 1),
    ],
)
def test_exit_codes(session: str, options: list[str], code: int, folder: Path) -> None:
    assert fake("run", *options, "train.py", folder=folder, session=session).returncode == code


@pytest.mark.parametrize("session", ["healthy", "sick", "unobserved", "fault"])
@pytest.mark.parametrize(("ending", "code"), [("sys.exit(7)", 7), ("sys.exit('text')", 1), ("1 / 0", 1)])
def test_a_failing_script_keeps_its_exit_code(session: str, ending: str, code: int, folder: Path) -> None:
    (folder / "train.py").write_text(f"import sys\n{ending}")
    assert fake("run", "train.py", folder=folder, session=session).returncode == code


def test_the_report_comes_before_the_scripts_own_traceback(folder: Path) -> None:
    (folder / "train.py").write_text("print('out')\n1 / 0")
    ended = fake("run", "train.py", folder=folder, session="sick")
    assert ended.stdout == "out\n"
    assert ended.stderr.index("a made-up finding") < ended.stderr.index("Traceback")
    assert "raised ZeroDivisionError: division by zero" in ended.stderr
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_quiet_says_nothing_but_writes_the_files(folder: Path) -> None:
    ended = fake("run", "-q", "--json", "r.json", "train.py", folder=folder, session="sick")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("out\n", "", 1)
    assert json.loads((folder / "r.json").read_text())["findings"][0]["check"] == "fake-check"


def test_every_format_is_written_beside_the_script_that_changes_its_folder(folder: Path) -> None:
    (folder / "train.py").write_text("import os; os.mkdir('deep'); os.chdir('deep')")
    files = {"json": "r.json", "markdown": "r.md", "junit": "r.xml", "sarif": "r.sarif"}
    options = [text for form, file in files.items() for text in (f"--{form}", file)]
    ended = fake("run", *options, "train.py", folder=folder, session="sick")
    assert ended.returncode == 1
    for form, file in files.items():
        assert "a made-up finding" in (folder / file).read_text()
        assert f"netdoctor: {form} report: {file}\n" in ended.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(["train.py", "deep", *files.values()])


def test_stop_after_enough_steps_is_no_failure(folder: Path) -> None:
    (folder / "train.py").write_text("import sys\nsys.audit('train')\nprint('never')")
    ended = fake("run", "--steps", "5", "--fail-on", "never", "train.py", folder=folder, session="stop")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "stopped after 5 steps" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_no_training_says_what_was_seen(folder: Path) -> None:
    ended = fake("run", "--json", "r.json", "train.py", folder=folder, session="unobserved")
    assert ended.stderr.splitlines()[0] == (
        "netdoctor: no training was seen in train.py, so there is no verdict: "
        "no layer was called, no backward pass was made, no optimizer step was taken"
    )
    assert json.loads((folder / "r.json").read_text())["verdict"] == "not observed"


def test_a_fault_of_netdoctor_is_one_line_and_the_script_keeps_its_output(folder: Path) -> None:
    ended = fake("run", "train.py", folder=folder, session="fault")
    assert ended.stdout == "out\n"
    assert ended.stderr == "netdoctor: a fault of netdoctor itself, please report it: ZeroDivisionError: made up\n"
    assert "Traceback" in fake("run", "-v", "train.py", folder=folder, session="fault").stderr


def test_a_report_that_can_no_longer_be_written_is_said_and_the_others_are_written(folder: Path) -> None:
    (folder / "train.py").write_text("import os; os.symlink('/etc/hostname', 'a.json')")
    ended = fake("run", "--json", "a.json", "--markdown", "b.md", "train.py", folder=folder, session="sick")
    assert ended.returncode == 2
    assert "netdoctor: will not write the report through the link a.json" in ended.stderr
    assert (folder / "b.md").exists()
    assert (folder / "a.json").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "none.py"], "no such file: none.py"),
        (["run", "."], ". is a folder, not a script"),
        (["run", "-m", "nowhere.train"], "no module named 'nowhere.train'"),
        (["run", "--select", "ded-relu", "train.py"], "unknown check 'ded-relu'"),
        (["run", "--ignore", "ded-relu:body.*", "train.py"], "unknown check 'ded-relu'"),
        (["run", "--json", "no/r.json", "train.py"], "cannot write the report to no/r.json: there is no folder"),
        (["run", "--html", ".", "train.py"], "cannot write the report to .: it is a folder"),
        (["run", "--json", "/dev/null", "train.py"], "/dev/null: it is not an ordinary file"),
        (["run", "--json", "train.py", "train.py"], "train.py: that name is for Python source"),
        (["run", "--json", "r", "--html", "./r", "train.py"], "./r is given for two reports"),
        (["explain", "ded-relu"], "unknown check 'ded-relu'"),
        (["report", "none.json"], "cannot read none.json"),
        (["report", "train.py"], "train.py is not JSON"),
        (["examine", "train.py"], "'train.py' is not of the form package.module:factory"),
    ],
)
def test_misuse_is_one_line_before_anything_runs(arguments: list[str], says: str, folder: Path) -> None:
    assert says in refused(folder, *arguments)


def test_a_link_is_refused_before_the_run(folder: Path) -> None:
    (folder / "r.json").symlink_to("/etc/hostname")
    assert "through the link r.json" in refused(folder, "run", "--json", "r.json", "train.py")


def test_a_bad_pyproject_is_one_line(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.netdoctor]\nfail-of = 'error'")
    assert refused(folder, "run", "train.py").endswith(
        "pyproject.toml: [tool.netdoctor] has no fail-of: did you mean fail-on?"
    )


def test_options_and_project_settings_reach_the_session(folder: Path) -> None:
    settings = "fail-on = 'never'\nbudget = 5\nexperiments = true"
    (folder / "pyproject.toml").write_text(f"[tool.netdoctor]\n{settings}")
    arguments = ["--no-experiments", "--steps", "9", "--json", "r.json", "train.py"]
    assert fake("run", *arguments, folder=folder, session="sick").returncode == 0
    title = json.loads((folder / "r.json").read_text())["findings"][0]["title"]
    assert "budget=5.0, experiments=False, steps=9, exact=False, target='train.py', progress=True" in title


def test_a_saved_report_is_shown_on_stdout(folder: Path) -> None:
    fake("run", "--json", "r.json", "train.py", folder=folder, session="sick")
    shown = netdoctor("report", "r.json", folder=folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "a made-up finding" in shown.stdout


MODEL = """
class Model:
    def __call__(self): ...
    def named_parameters(self): ...
def broken(): raise RuntimeError("mine")
def make(): return Model(), max, 0
def none(): return None
def two(): return 1, 2
def no_model(): return 1, max, 0
def no_loss(): return Model(), None, 0
def no_optimizer(): return Model(), max, 0, 5
constant = 3
"""


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("own:none", "own:none returned None; it must return (model, loss_fn, batch)"),
        ("own:two", "own:two returned 2 values"),
        ("own:no_model", "as the model; that must be a torch.nn.Module"),
        ("own:no_loss", "returned None as the loss function"),
        ("own:no_optimizer", "as the optimizer"),
        ("own:constant", "is not a function"),
        ("own:mak", "module own has no 'mak': did you mean 'make'?"),
        ("nowhere:make", "no module named 'nowhere'"),
        ("own", "is not of the form package.module:factory"),
        ("own.py:make", "no module named 'own.py'"),
    ],
)
def test_a_factory_that_gives_the_wrong_thing(factory: str, says: str, folder: Path) -> None:
    (folder / "own.py").write_text(MODEL)
    assert says in refused(folder, "examine", factory)


def test_examine_reports_and_exits_like_run(folder: Path) -> None:
    (folder / "own.py").write_text(MODEL)
    ended = fake("examine", "--json", "r.json", "own:make", folder=folder, session="sick")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "target='own:make'" in (folder / "r.json").read_text()
    assert fake("examine", "own:make", folder=folder).returncode == 0


def test_a_factory_that_raises_keeps_its_own_traceback(folder: Path) -> None:
    (folder / "own.py").write_text(MODEL)
    ended = fake("examine", "own:broken", folder=folder)
    assert ended.returncode == 1
    assert ended.stderr.endswith("RuntimeError: mine\n")
    assert ended.stderr.count('File "') == 1
