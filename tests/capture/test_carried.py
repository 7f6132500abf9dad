"""The call of a later step that is given a tensor of an earlier one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.capture.observing import observing, seed


@pytest.mark.parametrize("detached", [False, True])
def test_a_hidden_state_that_goes_on(detached):
    seed()
    cell, state = nn.GRUCell(3, 4), torch.zeros(2, 4)
    optimizer = torch.optim.SGD(cell.parameters(), lr=0.1)
    with observing() as observation:
        for _ in range(3):
            state = cell(torch.randn(2, 3), state.detach() if detached else state)
            optimizer.zero_grad()
            state.square().sum().backward(retain_graph=True)
            if detached or not len(optimizer.state):
                optimizer.step()
            if not detached:
                break
        if not detached:
            state = cell(torch.randn(2, 3), state)
            state.square().sum().backward(retain_graph=True)
    events = [event for event in observation.recording.events if event.kind == "carried graph"]
    assert [(event.step, event.detail) for event in events] == ([] if detached else [(1, "GRUCell")])
    assert all(event.source.text.startswith("state = cell(") for event in events)
