"""The gradient with and without a scaled loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.underflow import NAME, look
from netdoctor.session import Options, Session


def trained(weight: float, dtype: torch.dtype = torch.float16, scaling: bool = False) -> Session:
    torch.manual_seed(0)
    session = Session(Options(experiments=False))
    session.start()
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=scaling)
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            out = model(torch.randn(64, 8))
        loss = weight * out.float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    session.stop()
    return session


def arms(session: Session) -> dict[str, object]:
    assert session._step is not None
    found = look(session.recording, session._step, Budget(10))
    return dict(found[NAME].facts) if NAME in found else {}


@pytest.mark.parametrize(("weight", "least", "most"), [(1.0, 0.0, 0.05), (1e-5, 0.3, 1.0)])
def test_small_gradients_are_lost(weight: float, least: float, most: float) -> None:
    facts = arms(trained(weight))
    assert least <= float(str(facts["lost"])) <= most
    assert facts["finite"] is True
    assert float(str(facts["entries"])) > 100


def test_a_scaler_and_bfloat16_need_no_look() -> None:
    scaled = trained(1e-5, scaling=True)
    assert scaled.recording.facts["loss_scaler"] is True
    assert arms(scaled) == {}
    assert arms(trained(1e-5, torch.bfloat16)) == {}
