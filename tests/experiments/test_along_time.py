"""Gradients on their way back through time: beside those that autograd gives for inputs that ask for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.errors import CannotReplayError
from netdoctor.experiments import along_time
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Recording, Series
from tests.experiments.capturing import fit

Y = torch.arange(96) % 3
HURT = {"loss_family": "cross_entropy", "classes": 3, "loss_lower_bound": 0.0}


class Reader(nn.Module):
    """Reads a sequence, and answers by its last state."""

    def __init__(self, kind: type[nn.RNNBase], first: bool, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.head, self.first = kind(4, 16, batch_first=first), nn.Linear(16, 3), first
        with torch.no_grad():
            self.read.weight_hh_l0.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.read(x if self.first else x.transpose(0, 1))
        return self.head(out[:, -1] if self.first else out[-1])


def asked(model: nn.Module, length: int = 20, falling: bool = False) -> dict[str, Arm]:
    x = torch.randn(96, length, 4, generator=torch.Generator().manual_seed(1))
    step = fit(model, F.cross_entropy, x, Y)
    losses = np.linspace(1.1, 0.1 if falling else 1.1, 100) + 0.001 * np.sin(np.arange(100.0))
    return along_time.look(
        Recording(losses={"loss": Series(np.arange(100), losses)}, facts=dict(HURT)), step, Budget(60)
    )


def expected(model: Reader, length: int = 20) -> float:
    x = torch.randn(96, length, 4, generator=torch.Generator().manual_seed(1))[:32].requires_grad_()
    F.cross_entropy(model(x), Y[:32]).backward()
    assert x.grad is not None
    sizes = x.grad.square().mean(dim=(0, 2)).sqrt()
    return math.log10(float(sizes[0] / sizes[-1]))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_decades_are_those_of_the_input_gradient(kind: type[nn.RNNBase], first: bool) -> None:
    wanted = expected(Reader(kind, first))
    (arm,) = asked(Reader(kind, first)).values()
    assert arm.name == "time/read"
    assert arm.facts["positions"] == 20
    assert float(arm.facts["decades"]) == pytest.approx(wanted, abs=0.01)


def test_small_recurrent_weights_lose_it() -> None:
    (arm,) = asked(Reader(nn.RNN, True, scale=0.1)).values()
    assert float(arm.facts["decades"]) < -10


def test_short_sequences_and_trainings_that_learn_are_not_asked() -> None:
    assert asked(Reader(nn.RNN, True), length=7) == {}
    assert asked(Reader(nn.RNN, True), falling=True) == {}


def test_models_without_a_recurrence_have_no_arm() -> None:
    assert asked(nn.Sequential(nn.Flatten(), nn.Linear(80, 3))) == {}


def test_a_copy_that_fails_is_an_answer_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> float:
        raise CannotReplayError("on purpose")

    monkeypatch.setattr(along_time, "_run", lambda step, given: given.update(read=torch.ones(1)) or broken())
    (arm,) = asked(Reader(nn.RNN, True)).values()
    assert arm.failure == "on purpose"
    monkeypatch.setattr(along_time, "_run", broken)
    assert asked(Reader(nn.RNN, True)) == {}
