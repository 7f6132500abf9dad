"""All doors over the real engine, each in a fresh interpreter, on one small training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doors.commands import ROOT, netdoctor, python
from tests.doors.test_pytest_plugin import LOAD, PLAIN

pytestmark = pytest.mark.slow

TRAIN = """
import sys, time
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(40):
    x = torch.randn(32, 8)
    loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item(), flush=True)
"""
FACTORY = """
import torch
from torch import nn

def make(dead=False, wide=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    if dead:
        nn.init.constant_(model[0].bias, -100.0)
    return model, nn.CrossEntropyLoss(), (torch.randn(32, wide), torch.arange(32) % 2)

def dead():
    return make(dead=True)

def mismatched():
    return make(wide=9)
"""


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(text)
    return netdoctor("run", "--no-experiments", "--json", "r.json", *options, "train.py", folder=folder)


def report(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder / "r.json").read_text())
    return loaded


def test_a_healthy_script_prints_the_same_to_the_last_bit(tmp_path: Path) -> None:
    watched = run(tmp_path, TRAIN)
    plain = python("train.py", folder=tmp_path)
    assert watched.stdout == plain.stdout
    assert watched.returncode == plain.returncode == 0, watched.stderr
    assert (report(tmp_path)["verdict"], report(tmp_path)["steps"]) == ("healthy", 40)


@pytest.mark.parametrize(
    ("ending", "code", "ended", "last"),
    [
        ("1 / 0", 1, "raised ZeroDivisionError: division by zero", "ZeroDivisionError: division by zero"),
        ("sys.exit(7)", 7, "exit 7", None),
        ("sys.exit('enough')", 1, "exit 1", "enough"),
        ("raise KeyboardInterrupt", 130, "interrupted", "KeyboardInterrupt"),
    ],
)
def test_a_script_that_ends_early_is_reported_first(
    ending: str, code: int, ended: str, last: str | None, tmp_path: Path
) -> None:
    watched = run(tmp_path, TRAIN + f"    if step == 9: {ending}\n")
    assert watched.returncode == code
    assert (report(tmp_path)["ended"], report(tmp_path)["steps"]) == (ended, 10)
    if last is not None:
        assert watched.stderr.splitlines()[-1] == last
    assert "netdoctor/" not in watched.stderr.partition("Traceback")[2]


def test_ctrl_c_in_the_middle_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN + "    time.sleep(0.2)\n")
    command = [sys.executable, "-m", "netdoctor", "run", "--no-experiments", "--json", "r.json", "train.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for _ in range(5):
            running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == 130, stderr
    assert report(tmp_path)["ended"] == "interrupted"
    assert stderr.splitlines()[-1].startswith("KeyboardInterrupt")


def test_steps_stops_the_script(tmp_path: Path) -> None:
    watched = run(tmp_path, TRAIN + "print('never')", "--steps", "12")
    assert watched.returncode == 0, watched.stderr
    assert "never" not in watched.stdout
    assert (report(tmp_path)["ended"], report(tmp_path)["steps"]) == ("stopped after 12 steps", 12)


def test_a_script_that_never_trains_says_what_was_seen(tmp_path: Path) -> None:
    watched = run(tmp_path, "import torch; print(torch.nn.Linear(2, 1)(torch.ones(1, 2)).shape)")
    assert watched.returncode == 2
    (line, *_) = watched.stderr.splitlines()
    assert line.startswith("netdoctor: no training was seen in train.py, so there is no verdict: ")
    assert line.endswith("no backward pass was made, no optimizer step was taken")
    assert report(tmp_path)["verdict"] == "not observed"


def test_examine_finds_what_a_run_would(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FACTORY)
    options = ["--no-experiments", "--json", "r.json", "--html", "r.html"]
    ended = netdoctor("examine", *options, "own:dead", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    first = json.loads((tmp_path / "r.json").read_text())["findings"][0]
    assert (first["check"], first["location"]["module"]) == ("dead-relu", "1")
    assert "dead-relu" in (tmp_path / "r.html").read_text()


def test_examine_shows_the_error_of_a_model_that_does_not_fit_its_batch(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FACTORY)
    ended = netdoctor("examine", "own:mismatched", folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("netdoctor: a training step with what own:mismatched returned failed\n")
    assert "netdoctor/" not in ended.stderr
    assert "shapes cannot be multiplied" in ended.stderr.splitlines()[-1]


PYTEST = """
import pytest
from own import make

def test_overfits(netdoctor):
    netdoctor.assert_overfits(*make(), steps=300, to=0.2)

def test_does_not_reach(netdoctor):
    netdoctor.assert_overfits(*make(), steps=2, to=0.2)

def test_dead(netdoctor):
    netdoctor.assert_healthy(*make(dead=True))

def test_watched(netdoctor):
    import torch
    model, loss_fn, (x, y) = make(dead=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with netdoctor.watch(model, optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
    netdoctor.assert_healthy()

@pytest.mark.netdoctor(experiments=False)
def test_marked():
    import torch
    model, loss_fn, (x, y) = make(dead=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
"""


def test_the_pytest_plugin_over_the_engine(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FACTORY)
    (tmp_path / "test_it.py").write_text(PYTEST)
    ended = python("-m", "pytest", *LOAD, *PLAIN, "-rA", "test_it.py", folder=tmp_path)
    summary = [line for line in ended.stdout.splitlines() if line.startswith(("PASSED", "FAILED"))]
    assert [line.split()[:2] for line in sorted(summary)] == [
        ["FAILED", "test_it.py::test_dead"],
        ["FAILED", "test_it.py::test_does_not_reach"],
        ["FAILED", "test_it.py::test_marked"],
        ["FAILED", "test_it.py::test_watched"],
        ["PASSED", "test_it.py::test_overfits"],
    ], ended.stdout
    assert sum("dead-relu" in line for line in summary) == 3
    assert "in 2 steps, not down to 0.2" in ended.stdout


ASSERTIONS = """
import torch
from torch import nn
from own import make

class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)

x = torch.randn(8, 6, 4)

def log_of_negative(output, target):
    return nn.functional.cross_entropy(torch.log(output), target)

def test_finite(netdoctor):
    netdoctor.assert_finite(*make())

def test_not_finite(netdoctor):
    model, _, batch = make()
    netdoctor.assert_finite(model, log_of_negative, batch)

def test_all_learn(netdoctor):
    netdoctor.assert_all_parameters_learn(*make())

def test_dead_do_not_learn(netdoctor):
    netdoctor.assert_all_parameters_learn(*make(dead=True))

def test_frozen(netdoctor):
    model, loss_fn, batch = make()
    model[0].weight.requires_grad_(False)
    netdoctor.assert_all_parameters_learn(model, loss_fn, batch, exempt=["0.*"])
    netdoctor.assert_all_parameters_learn(model, loss_fn, batch)

def test_watched_learn(netdoctor):
    model, loss_fn, (x, y) = make(dead=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with netdoctor.watch(model, optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
    netdoctor.assert_finite()
    netdoctor.assert_all_parameters_learn()

def test_apart(netdoctor):
    netdoctor.assert_no_leakage(*make())
    netdoctor.assert_no_leakage(Attention(), x)

def test_mixed(netdoctor):
    netdoctor.assert_no_leakage(nn.Softmax(0), x)

def test_not_causal(netdoctor):
    netdoctor.assert_causal(Attention(), x)

def test_random(netdoctor):
    netdoctor.assert_deterministic_eval(nn.Linear(4, 4), x)
    netdoctor.assert_deterministic_eval(lambda x: x, x)
"""


def test_the_assertions_over_the_engine(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FACTORY)
    (tmp_path / "test_it.py").write_text(ASSERTIONS)
    ended = python("-m", "pytest", *LOAD, *PLAIN, "-rA", "--tb=short", "test_it.py", folder=tmp_path)
    assert "7 failed, 3 passed" in ended.stdout, ended.stdout
    for said in (
        "NaN in the forward pass of step 0: log",
        "3 of 4 parameters did not learn: 0.weight, 0.bias, 2.weight never got a gradient",
        "likely cause: dead-relu: 16 of 16 units of layer 1 are dead",
        "1 of 4 parameters did not learn: 0.weight is frozen",
        "cross-sample-leakage: the output for one sample changes by",
        "causal-leak: the outputs up to position 0 change by",
        "is_causal=True",
        "must be a torch.nn.Module, not function",
    ):
        assert said in ended.stdout, said
    assert "pytest_plugin.py" not in ended.stdout
