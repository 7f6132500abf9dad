"""What a loaded checkpoint holds, and whether the optimizer got its state."""

from __future__ import annotations

import io

import torch
from torch import nn

from netdoctor.session import Options, Session


def resumed(restore: bool, with_optimizer: bool = True) -> dict[str, float | str | bool]:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), **({"opt": optimizer.state_dict()} if with_optimizer else {})}, file)
    file.seek(0)
    load, load_state = torch.load, torch.optim.Optimizer.load_state_dict
    session = Session(Options(experiments=False))
    session.start()
    checkpoint = torch.load(file)
    model.load_state_dict(checkpoint["model"])
    if restore:
        optimizer.load_state_dict(checkpoint["opt"])
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    session.stop()
    assert (torch.load, torch.optim.Optimizer.load_state_dict) == (load, load_state)
    return session.recording.facts


def test_the_two_facts() -> None:
    facts = resumed(restore=False)
    assert facts["optimizer_state_in_checkpoint"] is True
    assert "optimizer_state_loaded" not in facts
    assert resumed(restore=True)["optimizer_state_loaded"] is True
    assert "optimizer_state_in_checkpoint" not in resumed(restore=False, with_optimizer=False)
