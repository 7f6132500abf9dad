"""The callbacks in the real frameworks. Without these packages the tests are skipped; .ci/run installs them and runs these."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netdoctor.errors import MisuseError
from netdoctor.judging import Options
from tests.doors.commands import python

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the frameworks' own deprecations
PASSIVE = Options(experiments=False)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    return x, (x[:, 0] > 0).long()


def body(dead: bool) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    if dead:
        nn.init.constant_(made[0].bias, -100.0)
    return made


def fit_lightning(callback: Any, dead: bool, folder: Path, fail: bool = False) -> None:
    lightning = pytest.importorskip("lightning")
    data = torch.utils.data.TensorDataset(*rows())

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body = body(dead)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if fail and index == 5:
                raise ZeroDivisionError("mine")
            return F.cross_entropy(self.body(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", F.cross_entropy(self.body(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader
    trainer.fit(Net(), loader(data, batch_size=16, shuffle=True), loader(data, batch_size=64))


def fit_transformers(callback: Any, dead: bool, folder: Path, fail: bool = False) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    x, y = rows()
    calls = iter(range(10**6))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body(dead)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            if fail and next(calls) == 5:
                raise ZeroDivisionError("mine")
            out = self.body(x)
            return {"loss": F.cross_entropy(out, labels), "logits": out}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=2, per_device_train_batch_size=16, report_to=[], use_cpu=True,
        save_strategy="no", eval_strategy="epoch", logging_strategy="no", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    data = [{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]
    transformers.Trainer(Net(), arguments, train_dataset=data, eval_dataset=data, callbacks=[callback]).train()


FRAMEWORKS = {"lightning": (fit_lightning, "val_loss"), "transformers": (fit_transformers, "eval_loss")}


def callback(framework: str, **options: Any) -> Any:
    pytest.importorskip(framework)
    made = importlib.import_module(f"netdoctor.integrations.{framework}").NetdoctorCallback
    return made(PASSIVE, **options)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sick_training_is_reported_when_it_ends(framework: str, tmp_path: Path, capsys: Any) -> None:
    fit, metric = FRAMEWORKS[framework]
    told: list[str] = []
    attending = callback(
        framework,
        on_finding=lambda finding: told.append(finding.check),
        html=str(tmp_path / "r.html"),
        save=str(tmp_path / "r.ndr"),
    )
    fit(attending, True, tmp_path)
    report = attending.report
    assert (report.findings[0].check, report.findings[0].location.module) == ("dead-relu", "body.1")
    assert report.steps == 32
    assert "dead-relu" in told
    assert "units of body.1 are dead" in capsys.readouterr().err
    assert "units of body.1 are dead" in (tmp_path / "r.html").read_text()
    from netdoctor.recordingfile import load

    assert metric in load(tmp_path / "r.ndr").recording.scalars


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_healthy_training_has_no_findings_and_quiet_is_quiet(framework: str, tmp_path: Path, capsys: Any) -> None:
    attending = callback(framework, quiet=True)
    FRAMEWORKS[framework][0](attending, False, tmp_path)
    assert (attending.report.verdict, attending.report.steps) == ("healthy", 32)
    assert "netdoctor" not in capsys.readouterr().err


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_training_that_fails_keeps_its_error_and_has_a_report(framework: str, tmp_path: Path) -> None:
    attending = callback(framework, quiet=True)
    with pytest.raises(ZeroDivisionError, match="mine"):
        FRAMEWORKS[framework][0](attending, False, tmp_path, fail=True)
    assert attending.report.steps == 5
    attending._attending.end()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_path_that_cannot_be_written_is_said_before_the_training(framework: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="there is no folder"):
        callback(framework, html=str(tmp_path / "none" / "r.html"))


def test_a_fault_of_netdoctor_does_not_cost_the_training(tmp_path: Path, capsys: Any) -> None:
    from netdoctor.integrations.attending import Attending

    attending = Attending(PASSIVE, "ignore", None, True, {"html": str(tmp_path / "r.html")})
    attending.begin([body(False)], [])
    attending.doctor.report = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    attending.end()
    assert "netdoctor: a fault of netdoctor itself, please report it: ZeroDivisionError" in capsys.readouterr().err


def test_importing_netdoctor_imports_neither(tmp_path: Path) -> None:
    code = "import netdoctor, netdoctor.integrations, sys; print({'lightning', 'transformers'} & set(sys.modules))"
    assert python("-c", code, folder=tmp_path).stdout == "set()\n"
