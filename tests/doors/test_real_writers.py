"""The real TensorBoard writer and a real Weights & Biases run; where they are not installed the tests are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import netdoctor
from netdoctor.judging import Options

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the packages' own deprecations


def train(writer: Any) -> netdoctor.Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.constant_(model[0].bias, -100.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with netdoctor.watch(model, optimizer, options=Options(experiments=False), writer=writer) as doctor:
        for _ in range(40):
            x = torch.randn(16, 8)
            optimizer.zero_grad()
            F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
            doctor.log(mine=1.0)
    return doctor.report()


def test_tensorboard_gets_curves_and_findings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("own", 1.0, 0)
        report = train(writer)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"own", "netdoctor/loss", "netdoctor/lr", "netdoctor/mine", "netdoctor/findings"} <= scalars
    assert {"netdoctor/activation rms/0", "netdoctor/update ratio/0.weight"} <= scalars
    assert [event.step for event in events.Scalars("netdoctor/loss")] == list(range(40))
    assert events.Scalars("netdoctor/findings")[-1].value == len(report.findings)
    text = events.Tensors("netdoctor/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "dead" in text


def test_a_run_of_weights_and_biases_gets_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="netdoctor")
    try:
        run.log({"own": 1.0})
        report = train(run)
        assert "dead" in run.summary["netdoctor/report"]
        assert run.summary["netdoctor/findings"] == len(report.findings)
        assert run.summary["own"] == 1.0
    finally:
        run.finish()
