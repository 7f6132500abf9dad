"""Trials of detaching what goes from one step to the next with its graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Recording
from netdoctor.report import Report
from tests.experiments.capturing import captured

AGAIN = "a second time"
Train = Callable[[], None]


def stepped(parameters: list[Tensor]) -> Callable[[Tensor], None]:
    optimizer = torch.optim.Adam(parameters, lr=1e-2)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def hidden_state() -> None:
    rnn, head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 1)
    step, state = stepped([*rnn.parameters(), *head.parameters()]), None
    for _ in range(3):
        out, state = rnn(torch.randn(4, 5, 3), state)
        step(head(out).square().mean())


def by_keyword() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(3, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            state = self.cell(x, memory["state"])
            return self.head(state), {"state": state}

    net, memory = Net(), {"state": torch.zeros(4, 8)}
    step = stepped(list(net.parameters()))
    for _ in range(3):
        out, memory = net(torch.randn(4, 3), memory=memory)
        step(out.square().mean())


def running_total() -> None:
    net, total = nn.Linear(3, 1), torch.zeros(())
    step = stepped(list(net.parameters()))
    for _ in range(3):
        total = total + net(torch.randn(4, 3)).square().mean()
        step(total)


def made_once() -> None:
    encoder, head = nn.Linear(3, 8), nn.Linear(8, 1)
    step = stepped([*encoder.parameters(), *head.parameters()])
    features = encoder(torch.randn(4, 3)).tanh()
    for _ in range(3):
        step(head(features).square().mean())


def out_of_sight() -> None:
    """What is carried is changed by a call of the next step that no weight takes part in."""
    cell, state = nn.GRUCell(3, 8), torch.zeros(4, 8)
    step = stepped(list(cell.parameters()))
    for _ in range(3):
        state = cell(torch.randn(4, 3), 0.5 * state)
        step(state.square().mean())


def failing(train: Train) -> TrainingStep:
    torch.manual_seed(0)

    def raising() -> None:
        with pytest.raises(RuntimeError, match=AGAIN):
            train()

    return captured(raising)


def tried(step: TrainingStep) -> Trial | None:
    found = Finding("carried-graph", "t", Severity.ERROR, "w", Location(), fixes=(Fix("detach-carried", ""),))
    report = Report("train.py", "sick", 1, findings=(found,))
    made = try_fixes(report, Recording(steps=1), step, Places(step), (), Budget(60), lambda _: None)
    assert made.crashes == ()
    return made.findings[0].fixes[0].trial


@pytest.mark.parametrize("train", [hidden_state, by_keyword, running_total])
def test_detached_it_goes_on(train: Train) -> None:
    step = failing(train)
    assert step.unfinished is not None
    trial = tried(step)
    assert trial is not None
    assert trial.measured is not None
    assert trial.verdict is Verdict.CURED
    assert (trial.measured.control, trial.measured.treated) == (39, 0)


def test_what_was_made_once_would_not_be_trained_any_more() -> None:
    trial = tried(failing(made_once))
    assert trial is not None
    assert trial.measured is not None
    assert trial.verdict is Verdict.NO_EFFECT
    assert (trial.measured.control, trial.measured.treated) == (39, 20)


def test_a_tensor_that_was_made_out_of_sight_is_not_tried() -> None:
    assert tried(failing(out_of_sight)) is None


@pytest.mark.parametrize("steps", [3, 30])
def test_a_training_that_carries_no_graph_keeps_no_unfinished_step(steps: int) -> None:
    def train() -> None:
        cell, state = nn.GRUCell(3, 8), torch.zeros(4, 8)
        step = stepped(list(cell.parameters()))
        for _ in range(steps):
            state = cell(torch.randn(4, 3), state.detach())
            step(state.square().mean())
        cell(torch.randn(4, 3), state.detach()).square().mean().backward()

    step = captured(train)
    assert step.unfinished is None
    assert tried(step) is None
