"""Optimizers that hold nothing of what the loss is made of, in a step whose operations could not be followed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from netdoctor.checks.structure.elsewhere import trained_elsewhere
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Recording
from tests.capture.observing import observing


def ensemble(stale: bool, steps: int = 10) -> Recording:
    """Three members that are trained together, by an optimizer of the stacked weights or (`stale`) of those before they were."""
    torch.manual_seed(0)
    with observing() as observation:
        members = [nn.Linear(4, 1) for _ in range(3)]
        stacked, buffers = stack_module_state(members)
        empty = nn.Linear(4, 1, device="meta")
        call = vmap(lambda p, b, x: functional_call(empty, (p, b), (x,)), in_dims=(0, 0, None))
        held: Any = [p for member in members for p in member.parameters()] if stale else stacked.values()
        optimizer = torch.optim.SGD(held, lr=0.1)
        for _ in range(steps):
            loss = call(stacked, buffers, torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return observation.recording


def told(recording: Recording) -> Finding | None:
    return trained_elsewhere("parameter-not-in-optimizer", recording)


def test_the_loss_is_made_of_other_tensors() -> None:
    found = told(ensemble(stale=True))
    assert found is not None
    assert found.severity is Severity.ERROR
    assert "none of the 6 parameters" in found.title
    assert "stacked['weight']" in found.explanation


def test_what_the_optimizer_holds_is_in_the_loss() -> None:
    assert told(ensemble(stale=False)) is None


@pytest.mark.parametrize(("steps", "fires"), [(7, False), (8, True)])
def test_a_few_steps_tell_nothing(steps: int, fires: bool) -> None:
    assert (told(ensemble(stale=True, steps=steps)) is not None) is fires


@pytest.mark.parametrize(
    ("line", "named", "code"),
    [
        ("opt = SGD(net.parameters(), lr=1)", "e.p['a'], e.p['b']", "opt = SGD(e.p.values(), lr=1)"),
        ("opt = SGD(net.parameters(), lr=1)", "w1, w2", "opt = SGD([w1, w2], lr=1)"),
        ("opt = SGD(net.parameters(), lr=1)", "w1", ""),  # one of two has no name
        ("opt = SGD(held, lr=1)", "w1, w2", ""),
    ],
)
def test_the_optimizers_own_line_with_the_tensors(line: str, named: str, code: str) -> None:
    recording = ensemble(stale=True)
    recording.facts["leaves_named"] = named
    source = recording.optimizers[0].source
    assert source is not None
    recording.optimizers = [replace(recording.optimizers[0], source=replace(source, text=line))]
    found = told(recording)
    assert found is not None
    assert found.fixes[0].code == code
