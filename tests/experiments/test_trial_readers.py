"""Inputs that a model leaves unread: what a small reader of them, added to the output, makes of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.experiments.treatments.readers import Reader
from netdoctor.finding import Trial, Verdict
from netdoctor.recording import Arm
from tests.experiments.capturing import watched
from tests.experiments.test_trial_measures import measured, tried

X = torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
SIDE = torch.randn(400, 4, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randint(3, 12, (400, 3), generator=torch.Generator().manual_seed(3))


class Half(nn.Module):
    """Reads its first input only, or none of it."""

    def __init__(self, blind: bool = False, pair: bool = False) -> None:
        super().__init__()
        self.blind, self.pair = blind, pair
        self.body = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor, side: Tensor | None = None) -> Any:
        made = self.body(0 * x if self.blind else x)
        return (made, made) if self.pair else made


def ignored(side: Tensor, target: Tensor, **model: bool) -> Trial | None:
    torch.manual_seed(0)
    net = Half(**model)

    def train() -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for rows in torch.arange(400).split(40):
            optimizer.zero_grad()
            made = net(X[rows], side=side[rows])
            F.mse_loss(made[0] if model.get("pair") else made, target[rows]).backward()
            optimizer.step()

    step, graph = watched(train)
    facts = [{"argument": "x", "whole": False}, {"argument": "side", "whole": True}]
    arms = {f"usage/{n}": Arm(f"usage/{n}", np.empty(0), facts=known) for n, known in enumerate(facts)}
    try:
        return tried(step, graph, "ignored-input", "use-input", places=("side",), arms=arms)
    except AssertionError:
        return None


def test_an_ignored_input_that_tells() -> None:
    trial = ignored(SIDE, X[:, :1] + SIDE @ torch.tensor([[2.0], [-1.0], [0.0], [1.0]]))
    assert trial is not None
    control, treated = measured(trial)
    assert control == pytest.approx(100)
    assert treated < 30
    assert trial.verdict is Verdict.CURED
    assert "a linear reader" in trial.says


def test_tokens_count_at_their_positions() -> None:
    worth = torch.randn(12, generator=torch.Generator().manual_seed(5))
    trial = ignored(TOKENS, (worth[TOKENS] * torch.tensor([3.0, -1.0, 1.0])).sum(1, keepdim=True))
    assert trial is not None
    assert trial.verdict is Verdict.CURED


def test_an_ignored_input_that_tells_nothing() -> None:
    trial = ignored(SIDE, X[:, :1] * 2)
    assert trial is not None
    assert trial.verdict not in (Verdict.CURED, Verdict.EASED)


def test_several_outputs_are_left_alone() -> None:
    assert ignored(SIDE, X[:, :1], pair=True) is None


def test_a_model_that_reads_nothing() -> None:
    torch.manual_seed(0)
    net = Half(blind=True)

    def train() -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for rows in torch.arange(400).split(40):
            optimizer.zero_grad()
            F.mse_loss(net(X[rows]), X[rows, :1] - X[rows, 3:4]).backward()
            optimizer.step()

    step, graph = watched(train)
    trial = tried(step, graph, "input-independent-output", "use-the-input")
    assert trial.verdict is Verdict.CURED
    assert trial.control[-1] > 1 > 0.1 > trial.treated[-1]


# --- the reader ------------------------------------------------------------------------------------------------------


def test_it_begins_with_nothing_to_add() -> None:
    reader = Reader(TOKENS, 2)
    assert reader.tokens
    assert torch.equal(reader(TOKENS[:7]), torch.zeros(7, 2))


def test_whole_numbers_of_many_kinds_are_numbers() -> None:
    pixels = torch.randint(0, 256, (400, 2, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    reader = Reader(pixels, 3)
    assert not reader.tokens
    assert reader(pixels[:5]).shape == (5, 3)


def test_what_could_be_learned_by_heart_is_not_read() -> None:
    """101 features for 400 samples, or 4 samples many times."""
    with pytest.raises(LookupError):
        Reader(torch.randn(400, 101), 1)
    with pytest.raises(LookupError):
        Reader(X[:4].repeat(100, 1), 1)
    Reader(torch.randn(400, 100), 1)
