"""Trainings that explode: for want of a derivative's graph, and for other reasons beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.structure.unbounded import BOUNDS
from netdoctor.experiments.bounding import look
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Origin, Recording
from tests.capture.observing import observing


def observed(create: bool = False, broken: bool = True, elsewhere: bool = False) -> tuple[Recording, TrainingStep]:
    """A critic of two clouds, bounded by a gradient penalty; `broken`: as if its run had ended in a NaN later.

    `elsewhere`: a model beside it has nothing that bounds it.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    other = nn.Sequential(nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 1))
    optimizer = torch.optim.Adam([*model.parameters(), *(other.parameters() if elsewhere else ())], lr=5e-3)
    with observing() as observation:
        for _ in range(30):
            real, fake = torch.randn(64, 2) + 1, torch.randn(64, 2)
            between = (real * torch.rand(64, 1) + fake).requires_grad_()
            out = model(between)
            slope = torch.autograd.grad(out, between, torch.ones_like(out), retain_graph=True, create_graph=create)[0]
            loss = model(fake).mean() - model(real).mean() + 2 * (slope.norm(dim=1) - 1).square().mean()
            if elsewhere:
                loss = loss - other(real).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        recording = observation.recording
    if broken:
        recording.origin = Origin("backward", "NaN", 90)
    return recording, observation.step


def critic(**options: bool) -> dict[str, Arm]:
    return look(*observed(**options), Budget(60))


def test_a_penalty_without_a_graph_does_not_bound() -> None:
    arms = critic()
    facts = arms[BOUNDS].facts
    assert facts["verdict"] == "failed"
    assert float(facts["without"]) > 10 * float(facts["with"])


def test_an_explosion_that_a_graph_does_not_prevent_is_another() -> None:
    arms = critic(elsewhere=True)
    assert arms[BOUNDS].facts["verdict"] == "passed"


@pytest.mark.parametrize(("create", "broken"), [(True, True), (False, False)], ids=["with a graph", "no explosion"])
def test_nothing_is_asked_where_nothing_is_to_be_explained(create: bool, broken: bool) -> None:
    assert critic(create=create, broken=broken) == {}


def test_what_there_was_no_time_for_is_said() -> None:
    recording, step = observed()
    assert "no time" in look(recording, step, Budget(0.0))[BOUNDS].failure
