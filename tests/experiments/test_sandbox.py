from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.batchnorm import bypass
from netdoctor.experiments.overfit import overfit
from netdoctor.experiments.sandbox import Budget, Sandbox, hand_written, quiet
from tests.experiments.capturing import captured, fit


class Training:
    """A training whose every tensor and random state can be hashed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.x, self.y = torch.randn(128, 6), torch.randint(0, 3, (128,))
        self.losses: list[float] = []
        self.step = captured(self.train)

    def train(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        for number in range(4):
            rows = slice(32 * number, 32 * number + 32)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.losses.append(loss.item())

    def digest(self) -> str:
        state = hashlib.sha256()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        momenta = [s["momentum_buffer"] for s in self.optimizer.state.values()]
        for tensor in [*self.model.state_dict().values(), *gradients, *momenta, self.x, self.y, torch.get_rng_state()]:
            state.update(tensor.detach().numpy().tobytes())
        modes = [module.training for module in self.model.modules()]
        hooks = [len(module._forward_hooks) for module in self.model.modules()]
        own = [sorted(vars(module)) for module in self.model.modules()]
        randoms = random.getstate(), np.random.get_state()[1].tobytes(), torch.is_grad_enabled()
        state.update(repr((modes, hooks, own, self.optimizer.param_groups[0]["lr"], randoms)).encode())
        return state.hexdigest()


@pytest.fixture
def training() -> Training:
    return Training()


def broken_edit(*_: object) -> tuple[object, object]:
    raise RuntimeError("broken on purpose")


def broken_optimizer(_: object) -> torch.optim.Optimizer:
    raise RuntimeError("broken on purpose")


def interrupted(*_: object) -> tuple[object, object]:
    raise KeyboardInterrupt


EXPERIMENTS: dict[str, Callable[[TrainingStep], object]] = {
    "run": lambda step: Sandbox(step).run(step.iterations, 12, Budget(20)),
    "lr": lambda step: Sandbox(step, lr_factor=100).run(step.iterations, 12, Budget(20)),
    "overfit": lambda step: overfit(step, Budget(20)),
    "bypass": lambda step: bypass(step, Budget(20)),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_original_is_untouched(training, name):
    before = training.digest()
    with quiet():
        EXPERIMENTS[name](training.step)
    assert training.digest() == before


@pytest.mark.parametrize(
    "broken",
    [
        lambda step: Sandbox(step, edit=broken_edit).run(step.iterations, 2, Budget(20)),
        lambda step: Sandbox(step, optimizer=broken_optimizer),
        lambda step: Sandbox(step, edit=interrupted).run(step.iterations, 2, Budget(20)),
    ],
)
def test_the_original_is_untouched_when_an_experiment_raises(training, broken):
    before = training.digest()
    with pytest.raises((RuntimeError, KeyboardInterrupt)), quiet():
        broken(training.step)
    assert training.digest() == before


def test_the_digest_sees_a_change(training):
    before = training.digest()
    with torch.no_grad():
        next(training.model.parameters())[0, 0] += 1e-6
    assert training.digest() != before


def test_the_replay_is_the_training_bit_for_bit(training):
    with quiet():
        run = Sandbox(training.step).run(training.step.iterations, 4, Budget(20))
    assert run.losses == training.losses
    assert run.ended == "finished"


def test_no_time_no_steps(training):
    with quiet():
        run = Sandbox(training.step).run(training.step.iterations, 4, Budget(0))
    assert (run.losses, run.ended) == ([], "out of time")


def test_an_optimizer_of_another_kind_trains_everything(training):
    sandbox = Sandbox(training.step, optimizer=lambda ps: torch.optim.Adam(ps, lr=0.01))
    assert [p.shape for p in sandbox.trainable()] == [p.shape for p in training.model.parameters()]
    with quiet():
        losses = sandbox.run(training.step.iterations[:1], 40, Budget(20)).losses
    assert losses[-1] < losses[0] / 2


def test_a_batch_that_was_overwritten_is_refused():
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randn(32, 1)
    step = fit(nn.Linear(6, 1), F.mse_loss, x, y, steps=1)
    x.zero_()
    with pytest.raises(CannotReplayError, match="overwritten"), quiet():
        Sandbox(step).run(step.iterations, 1, Budget(20))


def moved_by_hand(
    momentum: float = 0.0, limit: float = math.inf, rate: float = 0.1
) -> tuple[TrainingStep, list[float]]:
    """A loop that writes its updates itself, and its losses."""
    torch.manual_seed(0)
    x, y = torch.randn(256, 6), torch.randint(0, 3, (256,))
    model, losses = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), []

    def train() -> None:
        held = list(model.parameters())
        speeds = [torch.zeros_like(p) for p in held]
        for number in range(8):
            rows = slice(32 * number, 32 * number + 32)
            model.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            with torch.no_grad():
                for p, v in zip(held, speeds, strict=True):
                    v.mul_(momentum).add_(p.grad.clamp(-limit, limit) if p.grad is not None else 0.0)
                    p.sub_(rate * v)
            losses.append(loss.item())

    return captured(train), losses


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.5])
def test_a_rule_written_by_hand_gives_the_losses_of_the_script(momentum: float) -> None:
    step, losses = moved_by_hand(momentum)
    with quiet():
        assert hand_written(step) == (pytest.approx(0.1), momentum)
        again = Sandbox(step).run(step.iterations, 8, Budget(60)).losses
    assert again == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("options", [{"momentum": 0.7}, {"limit": 0.01}])
def test_a_rule_that_is_not_known_is_no_experiment(options: dict[str, float]) -> None:
    step, _ = moved_by_hand(**options)
    with quiet(), pytest.raises(CannotReplayError, match="a rule of its own"):
        Sandbox(step)


def test_a_model_that_steps_more_often_than_the_other_keeps_all_its_steps() -> None:
    """A critic that steps three times for each step of its generator: every loss comes back, in order."""
    losses: list[float] = []

    def train() -> None:
        torch.manual_seed(0)
        critic, generator = nn.Linear(2, 1), nn.Linear(3, 2)
        optimizers = [torch.optim.Adam(model.parameters(), lr=0.05) for model in (critic, generator)]
        for number in range(13):  # the last one ends what came before
            turn = optimizers[number % 4 == 3]
            fake = critic(generator(torch.randn(8, 3)))
            loss = -fake.mean() if turn is optimizers[1] else fake.mean() - critic(torch.randn(8, 2)).mean()
            turn.zero_grad()
            loss.backward()
            turn.step()
            losses.append(float(loss.detach()))

    step = captured(train)
    steps = [action for iteration in step.iterations for action in iteration.actions if action.kind == "step"]
    assert [action.optimizer for action in steps] == [0, 0, 0, 1] * 3 + [0]
    sandbox = Sandbox(step)
    again = [sandbox.iterate(iteration) for iteration in step.iterations]
    assert sum(again) == pytest.approx(sum(losses), abs=1e-6)
