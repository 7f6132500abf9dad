"""What keeps a tiny batch from being fitted, as a class with its reason, on trainings that nobody prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.experiments.blocking import (
    BROADCAST,
    CAPACITY,
    CONFLICT,
    IDLE,
    IGNORED,
    NO_PATH,
    RATE,
    SIGN,
    classify,
)
from netdoctor.experiments.overfit import overfit
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.width import bends
from netdoctor.recording import Arm
from tests.capture.observing import observing
from tests.experiments.capturing import mlp, watched

Make = Callable[[Any], torch.optim.Optimizer]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=3e-3)


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(0 * F.relu(self.first(x)).detach())
        return made


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.net(x - x)
        return made


def dead() -> nn.Module:
    model = mlp()
    nn.init.constant_(model[0].bias, -40.0)  # type: ignore[arg-type]
    return model


def saturated() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 3))
    nn.init.constant_(model[0].bias, 80.0)  # type: ignore[arg-type]
    return model


def arms(model: nn.Module, loss: Any, x: Tensor, y: Tensor, make: Make = adam, size: int = 16) -> dict[str, Arm]:
    def train() -> None:
        optimizer = make(model.parameters())
        for number in range(4):
            rows = slice(number * size, (number + 1) * size)
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()

    step, graph = watched(train)
    return overfit(step, Budget(120), graph)


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    return x, (x @ torch.randn(6, 3)).argmax(1)


@pytest.mark.parametrize(
    ("model", "name", "why"),
    [
        (Cut, NO_PATH, "50 % of the trained tensors are cut off"),
        (Blind, IGNORED, "exchanged between the samples"),
        (dead, IDLE, "100 % of the units of 1 (relu) are dead"),
        (saturated, IDLE, "100 % of the values of 1 (sigmoid) are saturated"),
    ],
)
def test_classes_of_the_model(model: Callable[[], nn.Module], name: str, why: str) -> None:
    x, y = data()
    facts = arms(model(), F.cross_entropy, x, y)["overfit/own"].facts
    assert facts["class"] == name
    assert why in str(facts["why"])


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_shapes_that_broadcast() -> None:
    x, _ = data()
    facts = arms(mlp(outputs=1), F.mse_loss, x, x[:, 0].clone())["overfit/own"].facts
    assert (facts["class"], facts["why"]) == (BROADCAST, "the loss compares (8, 1) with (8,)")


def test_a_wrong_sign_is_named_though_the_loss_has_no_floor() -> None:
    x, _ = data()
    assert "wrong sign" in arms(mlp(outputs=1), lambda p, t: -F.mse_loss(p, t), x, x[:, :1])["overfit/own"].failure


def test_a_linear_model_lacks_capacity() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    facts = arms(nn.Linear(2, 2), F.cross_entropy, x, (x[:, 0] * x[:, 1] > 0).long())["overfit/own"].facts
    assert facts["class"] == CAPACITY


def test_a_rate_that_is_far_off() -> None:
    x, y = data()
    facts = arms(mlp(), F.cross_entropy, x, y, lambda p: torch.optim.SGD(p, lr=1e-6))["overfit/own"].facts
    assert facts["class"] == RATE
    assert "times the learning rate" in str(facts["why"])


def test_samples_that_contradict_each_other_are_named() -> None:
    x, y = data()
    x, y = x.clone(), y.clone()
    x[1::2], y[1::2] = x[::2], (y[::2] + 1) % 3
    facts = arms(mlp(), F.cross_entropy, x, y, size=8)["overfit/own"].facts
    assert facts["class"] == CONFLICT
    assert str(facts["why"]).startswith("samples 0, 1, 2, 3, 4, 5, 6, 7 have")


def test_a_sound_training_has_no_class() -> None:
    x, y = data()
    facts = arms(mlp(), F.cross_entropy, x, y)["overfit/own"].facts
    assert facts["reached"]
    assert "class" not in facts


def test_a_loss_that_rises_everywhere_has_a_wrong_sign() -> None:
    import numpy as np

    rising = {name: Arm(f"overfit/{name}", np.array([1.0, 9.0]), facts={"start": 1.0}) for name in ("own", "adam 0.01")}
    assert classify({arm.name: arm for arm in rising.values()}, True)[0] == SIGN
    broken = {name: Arm(name, np.array([1.0, np.nan]), facts={"start": 1.0}) for name in rising}
    assert classify({f"overfit/{name}": arm for name, arm in broken.items()}, True) == ("", "")
    fitting = Arm("overfit/with wider layers", np.array([1.0, 0.0]), facts={"reached": True, "start": 1.0})
    assert classify({**{a.name: a for a in rising.values()}, fitting.name: fitting}, True)[0] == CAPACITY


class Linear(nn.Module):
    """A graph convolution without an activation, or one with it in the model's own `forward`."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.bent, self.first, self.last = bent, nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        made: Tensor = self.last(F.relu(hidden) if self.bent else hidden)
        return made


class Factors(nn.Module):
    """The product of two that were made of the input, and with `turned` weights alone in it."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned, self.one, self.other = turned, nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.turned:
            return x @ self.one.weight.t()
        made: Tensor = torch.einsum("bi,bi->b", self.one(x), self.other(x))[:, None].expand(-1, 4)
        return made


@pytest.mark.parametrize(
    ("model", "bent"), [(Linear(True), True), (Linear(False), False), (Factors(False), True), (Factors(True), False)]
)
def test_what_makes_a_model_more_than_linear(model: nn.Module, bent: bool) -> None:
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))

    with observing() as observation:
        optimizer = adam(model.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    graph = observation.recording.graph
    assert graph is not None
    assert bends(graph) is bent
