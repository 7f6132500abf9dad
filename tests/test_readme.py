"""What the README promises is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from netdoctor import cli
from netdoctor.config import Settings, load
from netdoctor.finding import Finding, Fix, Measured, Severity, Trial, Verdict
from netdoctor.report import Abstention, Crash, Evidence, Experiment, Report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(found)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 300


def test_two_commands_do_everything_and_ci_runs_the_second_to_the_letter() -> None:
    main_job, test = COMMANDS
    assert "netdoctor run --html report.html fixtures/dead_relu/sick.py" in main_job
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ci.split("# README\n")[1] == f"{test}\n"


def test_every_option_of_run_is_listed() -> None:
    command = cli.main.commands["run"]
    options = {name for option in command.params if isinstance(option, click.Option) for name in option.opts}
    listed = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", README.partition("### A model without")[0]))
    assert options - listed == set()


def keys(value: object) -> object:
    """The shape of a JSON value: its keys, at any depth, with one entry standing for all of a list."""
    if isinstance(value, dict):
        return {key: keys(entry) for key, entry in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


def test_the_json_format_has_the_keys_that_a_report_has() -> None:
    finding = Finding(
        "c",
        "t",
        Severity.ERROR,
        "",
        evidence=(Evidence("q", 1.0, ">", 0.5),),
        fixes=(Fix("f", "s", trial=Trial(Verdict.CURED, measured=Measured("q", 1.0, 0.0))),),
        symptoms=(Finding("d", "t", Severity.ERROR, ""),),
    )
    report = Report(
        "train.py",
        "sick",
        1,
        findings=(finding,),
        experiments=(Experiment("e", "passed", ""),),
        abstentions=(Abstention("a", ""),),
        crashes=(Crash("c", ""),),
        losses={"loss": (1.0, 2.0)},
    )
    actual, documented = json.loads(report.to_json()), json.loads(block("json"))
    for shape in (actual, documented):
        shape["findings"][0]["symptoms"][0]["location"] = None
    assert keys(documented) == keys(actual)


def test_the_settings_in_it_are_valid(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(block("toml"), encoding="utf-8")
    assert load(tmp_path) == Settings(ignore=("dead-relu:backbone.*",), thresholds={"dead-relu": {"error_share": 0.6}})


@pytest.mark.parametrize("path", re.findall(r"`((?:tests|\.ci)/[\w./]+)`", README))
def test_files_that_it_names_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_room_is_in_its_table() -> None:
    from tests.test_architecture import RANK

    table = README.partition("## Architecture")[2].partition("## Limits")[0]
    named = set(re.findall(r"`(\w+)(?:/[^`]*)?`", table))
    assert set(RANK) - {"__init__"} <= named


PRELUDE = """
import pytest, torch
from torch import nn
torch.manual_seed(0)
loss_fn = nn.CrossEntropyLoss()
batch = 4 * torch.randn(16, 8), torch.arange(16) % 2
def net(): return nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 2))
def sgd(model): return torch.optim.SGD(model.parameters(), lr=0.1)
model = net(); optimizer = sgd(model); loader = [batch] * 40
class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__(); self.embed = nn.Embedding(9, 4); self.rnn = nn.GRU(4, 9, batch_first=True)
    def forward(self, tokens): return self.rnn(self.embed(tokens))[0]
language_model, tokens = LanguageModel(), torch.randint(0, 9, (4, 12))
def validate(model): return 1.0
def train(model, optimizer):
    for x, y in loader:
        optimizer.zero_grad(); loss_fn(model(x), y).backward(); optimizer.step()
generator, discriminator = net(), net()
first_optimizer, second_optimizer = sgd(generator), sgd(discriminator)
class Writer:
    def add_scalar(self, *_): pass
writer = Writer()
class Trainer:
    def __init__(self, callbacks): self.callbacks = callbacks
"""
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("example", [text for text in EXAMPLES if "def test_" not in text], ids=lambda text: text[:30])
def test_the_examples_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "lightning" in example:
        pytest.importorskip("lightning")
    names: dict[str, object] = {}
    exec(PRELUDE + "import netdoctor\n" + example, names)
    if "report" in names:
        assert names["report"].steps >= 30  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_tests_in_it_pass(tmp_path: Path) -> None:
    from tests.doors.commands import python
    from tests.doors.test_pytest_plugin import LOAD, PLAIN

    (example,) = [text for text in EXAMPLES if "def test_" in text]
    (tmp_path / "test_it.py").write_text(PRELUDE + example)
    ended = python("-m", "pytest", *LOAD, *PLAIN, "test_it.py", folder=tmp_path)
    assert f"{example.count('def test_')} passed" in ended.stdout, ended.stdout
