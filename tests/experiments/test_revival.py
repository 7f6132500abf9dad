"""A trained model that goes on with a living learning rate: cut short, or done; and what keeps it from being asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.training.revived import AS_IT_ENDED, REVIVED, revival
from netdoctor.experiments.revival import as_it_ended, look
from netdoctor.experiments.sandbox import Budget, Sandbox
from netdoctor.recording import Recording, Series
from tests.experiments.capturing import captured, mlp

RATE, BATCHES, SIZE = 1e-2, 24, 32


def trained(
    alive: int, steps: int, noise: float = 0.3, batches: int = BATCHES
) -> tuple[nn.Module, TrainingStep, Recording]:
    """A small regression, whose rate is a thousandth from step `alive` on, and its recording as far as it is read."""
    torch.manual_seed(0)
    model, x = mlp(outputs=1), torch.randn(batches * SIZE, 6)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + noise * torch.randn(len(x), 1)
    rates, losses = [], []

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        for step in range(steps):
            rows = slice(step % batches * SIZE, (step % batches + 1) * SIZE)
            optimizer.param_groups[0]["lr"] = RATE if step < alive else RATE / 1000
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            losses.append(loss.item())

    step = captured(train)
    at = np.arange(steps)
    return (
        model,
        step,
        Recording(losses={"loss": Series(at, np.array(losses))}, scalars={"lr": Series(at, np.array(rates))}),
    )


def gain(recording: Recording, step: TrainingStep) -> float:
    recording.arms.update(look(recording, step, Budget(60)))
    found = revival(recording)
    assert found is not None, recording.arms
    return found.gain


def test_a_rate_that_died_early_would_have_taught_more() -> None:
    model, step, recording = trained(alive=40, steps=300)
    before = [p.detach().clone() for p in model.parameters()]
    assert gain(recording, step) > 0.2
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    treated, control = recording.arms[REVIVED], recording.arms[AS_IT_ENDED]
    assert treated.losses[0] == control.losses[0]
    assert treated.facts["lr"] == pytest.approx(RATE / 3)
    assert control.facts["lr"] == pytest.approx(RATE / 1000)
    assert (treated.steps, control.steps) == (240, 240)


def test_a_rate_that_died_when_all_was_learned_would_not() -> None:
    _, step, recording = trained(alive=600, steps=900, noise=1.0)
    assert gain(recording, step) < 0.02


def test_no_more_steps_than_the_run_had_left() -> None:
    _, step, recording = trained(alive=40, steps=140)
    gain(recording, step)
    assert recording.arms[REVIVED].steps == 90  # of 99, in tens


def test_the_optimizer_goes_on_as_it_ended() -> None:
    model, step, _ = trained(alive=10, steps=30)
    sandbox = Sandbox(as_it_ended(step))
    (kept,) = {int(state["step"]) for state in sandbox.optimizers[0].state.values()}
    assert kept == 30
    copied = sandbox.copies.of(model)
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(("alive", "facts"), [(300, {}), (230, {}), (40, {"several_optimizers": True})])
def test_it_is_not_asked_where_the_rate_lives_or_losses_play_against_each_other(
    alive: int, facts: dict[str, Any]
) -> None:
    _, step, recording = trained(alive=alive, steps=300)
    recording.facts.update(facts)
    assert look(recording, step, Budget(60)) == {}


def test_why_it_could_not_run_is_told() -> None:
    _, step, recording = trained(alive=40, steps=300)
    assert "time" in look(recording, step, Budget(0.0))[REVIVED].failure
    step.iterations = step.iterations[:5]
    assert look(recording, step, Budget(60))[REVIVED].failure == "fewer than 6 batches were captured"


def test_a_loss_that_breaks_says_nothing() -> None:
    model, step, recording = trained(alive=40, steps=300)
    with torch.no_grad():
        next(model.parameters()).mul_(1e30)
    arms = look(recording, step, Budget(60))
    assert set(arms) == {REVIVED}
    assert arms[REVIVED].failure
