"""One sick training through every door: each tells the same story."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doors.commands import netdoctor, python
from tests.doors.test_pytest_plugin import LOAD, PLAIN

pytestmark = pytest.mark.slow

OWN = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        nn.init.constant_(self.body[0].bias, -100.0)

    def forward(self, x, labels=None):
        out = self.body(x)
        return out if labels is None else {"loss": F.cross_entropy(out, labels), "logits": out}


def setup():
    torch.manual_seed(0)
    x = torch.randn(16 * 40, 8)
    data = list(zip(x.split(16), (x[:, 0] > 0).long().split(16)))
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.05), data


def train(model, optimizer, data):
    for x, y in data:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def example():
    model, optimizer, data = setup()
    return model, F.cross_entropy, data[0], optimizer


if __name__ == "__main__":
    train(*setup())
"""
WATCH = """
from own import setup, train
import netdoctor
from netdoctor.judging import Options
model, optimizer, data = setup()
with netdoctor.watch(model, optimizer, options=Options(experiments=False)) as doctor:
    train(model, optimizer, data)
open("r.json", "w").write(doctor.report().to_json())
doctor.save("r.ndr")
"""
DECORATED = """
from own import setup, train
import netdoctor
from netdoctor.judging import Options
doctor = netdoctor.watch(options=Options(experiments=False))
doctor(train)(*setup())
open("r.json", "w").write(doctor.report().to_json())
"""
TEST = """
import pytest
from own import setup, train

@pytest.mark.netdoctor(experiments=False)
def test_marked():
    train(*setup())

@pytest.mark.netdoctor(experiments=False)
def test_fixture(netdoctor):
    model, optimizer, data = setup()
    with netdoctor.watch(model, optimizer):
        train(model, optimizer, data)
    open("r.json", "w").write(netdoctor.report().to_json())
    pytest.skip()
"""
LIGHTNING = """
import warnings; warnings.simplefilter("ignore")
import lightning, torch
from own import setup
from torch.nn import functional as F
from netdoctor.integrations.lightning import NetdoctorCallback
from netdoctor.judging import Options
model, optimizer, data = setup()

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = model
    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return optimizer

loader = torch.utils.data.DataLoader(data, batch_size=None)
callback = NetdoctorCallback(Options(experiments=False), quiet=True, json="r.json")
lightning.Trainer(max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
                  enable_progress_bar=False, enable_model_summary=False).fit(Module(), loader)
"""
TRANSFORMERS = """
import torch, transformers
from own import setup
from netdoctor.integrations.transformers import NetdoctorCallback
from netdoctor.judging import Options
model, optimizer, data = setup()
rows = [{"x": a, "labels": b} for x, y in data for a, b in zip(x, y)]
arguments = transformers.TrainingArguments(
    output_dir="out", num_train_epochs=1, per_device_train_batch_size=16, report_to=[], use_cpu=True, max_grad_norm=0,
    save_strategy="no", logging_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential")
callback = NetdoctorCallback(Options(experiments=False), quiet=True, json="r.json")
constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback], optimizers=(optimizer, constant)).train()
"""
PASSIVE = ["--no-experiments", "-q", "--json", "r.json"]


def script(text: str) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        (folder / "script.py").write_text(text)
        return python("script.py", folder=folder)

    return run


def fixture(folder: Path) -> object:
    (folder / "test_it.py").write_text(TEST)
    return python("-m", "pytest", *LOAD, *PLAIN, "test_it.py::test_fixture", folder=folder)


def saved(folder: Path) -> object:
    script(WATCH)(folder)
    return netdoctor("report", "-q", "--json", "r.json", "r.ndr", folder=folder)


DOORS: dict[str, Callable[[Path], object]] = {
    "run -m": lambda folder: netdoctor("run", *PASSIVE, "-m", "own", folder=folder),
    "watch": script(WATCH),
    "decorator": script(DECORATED),
    "saved": saved,
    "pytest fixture": fixture,
    "lightning": script(LIGHTNING),
    "transformers": script(TRANSFORMERS),
    "examine": lambda folder: netdoctor("examine", *PASSIVE, "own:example", folder=folder),
}


def told(folder: Path) -> list[tuple[object, ...]]:
    """(check, severity, layer, symptoms) of every finding that a report names, in order."""
    findings = json.loads((folder / "r.json").read_text())["findings"]
    return [
        (
            finding["check"],
            finding["severity"],
            (finding["location"]["module"] or "").removeprefix("net."),
            sorted(symptom["check"] for symptom in finding["symptoms"]),
        )
        for finding in findings
        if finding["severity"] != "advice"
    ]


@pytest.fixture(scope="module")
def by_run(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "own.py").write_text(OWN)
    netdoctor("run", *PASSIVE, "own.py", folder=folder)
    return told(folder)


def test_the_cause_is_found_at_all(by_run: list[tuple[object, ...]]) -> None:
    assert by_run[0][:3] == ("dead-relu", "error", "body.1")


@pytest.mark.parametrize("door", DOORS)
def test_every_door_tells_the_same(door: str, by_run: list[tuple[object, ...]], tmp_path: Path) -> None:
    if door in ("lightning", "transformers"):
        pytest.importorskip(door)
    (tmp_path / "own.py").write_text(OWN)
    ended = DOORS[door](tmp_path)
    assert (tmp_path / "r.json").exists(), ended
    if door == "examine":  # one batch again and again is another training; the cause is the same
        assert [finding[:3] for finding in told(tmp_path)] == [finding[:3] for finding in by_run]
    else:
        assert told(tmp_path) == by_run


def test_a_marked_test_fails_with_the_same_cause(by_run: list[tuple[object, ...]], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "test_it.py").write_text(TEST)
    ended = python("-m", "pytest", *LOAD, *PLAIN, "-rf", "test_it.py::test_marked", folder=tmp_path)
    assert f"Failed: {by_run[0][0]}: 16 of 16 units of body.1" in ended.stdout
    assert f"{len(by_run)} root cause" in ended.stdout
