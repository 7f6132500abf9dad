"""The derivative of an equation, with a graph on a copy, against the same written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.finding import Fix
from netdoctor.recording import Recording
from tests.capture.observing import observing, seed
from tests.experiments.test_trial_treatments import STEPS, case, run


def net() -> nn.Sequential:
    seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))


def times() -> Tensor:
    return torch.linspace(0, 1, 16).unsqueeze(1).requires_grad_(True)


def fit(model: nn.Module, steps: int, positional: bool = False, create: bool = False) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(steps):
        t = times()
        u = model(t)
        if positional:
            slope = torch.autograd.grad(u, t, torch.ones_like(u), True, create)[0]
        else:
            slope = torch.autograd.grad(u.sum(), t, retain_graph=True, create_graph=create)[0]
        loss = (slope + u).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("positional", [False, True])
def test_a_graph_for_the_derivative(positional: bool) -> None:
    with observing() as observation:
        fit(net(), 3, positional)
        recording = observation.recording
    found = treatment_of(case(observation.step, Fix("create-graph", ""), recording))
    assert run(observation.step, found) == pytest.approx(fit(net(), STEPS, create=True), rel=1e-4)
    assert found is not None
    assert found.measure is not None
    bench = Bench(found.sandbox(observation.step), observation.step.iterations)
    assert found.measure.of(bench) > 10 * found.measure.limit
    with bench.stack:
        found.apply(bench)
        assert found.measure.of(bench) <= found.measure.limit


def test_no_derivative_no_treatment() -> None:
    with observing() as observation:
        fit(net(), 3, create=True)
        recording: Recording = observation.recording
    assert treatment_of(case(observation.step, Fix("create-graph", ""), recording)) is None
