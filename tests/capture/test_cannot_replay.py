"""What cannot be run again on a copy is refused with its reason; never a wrong number, and never a touch of the original."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.errors import CannotReplayError
from netdoctor.experiments.sandbox import Sandbox, quiet
from tests.capture.observing import observing, replayed, trained


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def refused(train, match, steps=2):
    """Whether a replay of the captured steps raises CannotReplayError with this reason."""
    observation, _ = trained(train)
    with pytest.raises(CannotReplayError, match=match), quiet():
        replayed(observation.step, steps)


def sgd(log, parameters):
    return log.watch(torch.optim.SGD(parameters, lr=0.1))


def test_numpy_between_model_and_loss():
    """The user's mistake that cuts the graph: what comes back in is no longer made of the model's weights."""

    def train(log):
        model = mlp()
        optimizer = sgd(log, model.parameters())
        for _ in range(2):
            out = model(torch.randn(4, 5)).detach().numpy() * 2
            loss = F.mse_loss(torch.from_numpy(out).requires_grad_(), torch.zeros(4, 3))
            optimizer.zero_grad()
            log.backward(loss)
            optimizer.step()

    observation, log = trained(train)
    totals, copy = replayed(observation.step, 1)
    assert totals == log.losses[:1]
    assert all(gradient is None for gradient in copy.gradients[0])


def test_a_large_batch_that_was_overwritten():
    def train(log):
        model, buffer = mlp(), torch.empty(60_000, 5)
        optimizer = sgd(log, model.parameters())
        for _ in range(3):
            buffer.normal_()
            optimizer.zero_grad()
            log.backward(model(buffer).square().mean())
            optimizer.step()

    refused(train, "overwritten")


def test_a_loss_made_out_of_sight():
    """Made before the observation began."""
    model = mlp()
    loss = model(torch.randn(4, 5)).square().mean()
    with observing() as observation:
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(CannotReplayError, match="could not be followed"):
        observation.step.copies()


class Carrying(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(5, 4), nn.Linear(4, 3)

    def forward(self, x, h):
        h = self.cell(x, h)
        return self.head(h), h


def test_a_state_that_keeps_its_graph():
    """Through the kept graph a replay would reach the user's own weights, and add to their gradients."""

    def train(log):
        model, h = Carrying(), torch.zeros(4, 4)
        optimizer = sgd(log, [model.head.bias])  # the cell's weights stay as the kept graph needs them
        for _ in range(3):
            out, h = model(torch.randn(4, 5), h)
            log.backward(out.square().mean(), retain_graph=True)
            optimizer.step()
        models.append(model)

    models = []
    observation, _ = trained(train)
    before = [p.grad.clone() for p in models[0].parameters()]
    with pytest.raises(CannotReplayError, match="earlier step"):
        replayed(observation.step, 2)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, models[0].parameters(), strict=True))


def test_lbfgs():
    def train(log):
        model, x = mlp(), torch.randn(4, 5)
        optimizer = log.watch(torch.optim.LBFGS(model.parameters(), max_iter=4))

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)

    refused(train, "L-BFGS")


def test_a_model_that_refuses_to_be_copied():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(x)

        def __deepcopy__(self, memo):
            raise RuntimeError("there may be only one")

    def train(log):
        model = Single()
        optimizer = sgd(log, model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            log.backward(model(torch.randn(4, 5)).square().mean())
            optimizer.step()

    refused(train, "Single cannot be copied .*only one")


def test_nothing_captured():
    with observing() as observation:
        mlp()(torch.randn(2, 5))
    with pytest.raises(CannotReplayError, match="no complete training step was captured"):
        Sandbox(observation.step)


def test_an_update_rule_of_the_loops_own():
    def train(log):
        model = mlp()
        momentum = [torch.zeros_like(p) for p in model.parameters()]
        for _ in range(4):
            log.backward(model(torch.randn(4, 5)).square().mean())
            with torch.no_grad():
                for m, p in zip(momentum, model.parameters(), strict=True):
                    m.mul_(0.9).add_(p.grad.sign())
                    p.sub_(0.01 * m)
                    p.grad = None

    refused(train, "rule of its own")


def test_a_model_whose_layers_were_exchanged():
    """What is left of the model cannot do the captured step: a reason, not a crash."""

    def train(log):
        model = mlp()
        optimizer = sgd(log, model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            log.backward(model(torch.randn(4, 5)).square().mean())
            optimizer.step()
        model[2] = nn.Linear(8, 7)

    refused(train, "another loss|changed|use")


def test_a_model_converted_after_training():
    """Half or double precision, another device: the copy is put back to what the start was."""

    def train(log):
        model = mlp()
        optimizer = sgd(log, model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            log.backward(model(torch.randn(4, 5)).square().mean())
            optimizer.step()
        model.double()

    observation, log = trained(train)
    assert replayed(observation.step, 2)[0] == log.losses


class OwnRandomness(nn.Module):
    """The state of this generator is not known to anybody but the model."""

    def __init__(self):
        super().__init__()
        self.net, self.random = mlp(), random.Random(0)

    def forward(self, x):
        return self.net(x) * self.random.random()


class OwnMemory(nn.Module):
    """Carries a state from call to call in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = mlp(), 0.0

    def forward(self, x):
        self.seen += 1.0
        return self.net(x) * self.seen


class OwnBuffer(nn.Module):
    """Replaces its buffer instead of writing into it."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        out = self.net(x)
        self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
        return out - self.mean


@pytest.mark.parametrize("kind", [OwnRandomness, OwnMemory, OwnBuffer])
def test_a_replay_that_gives_another_loss(kind):
    """Wherever a model keeps what the capture cannot know, the first loss tells: refused, never a wrong curve."""

    def train(log):
        model = kind()
        optimizer = sgd(log, model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            log.backward(model(torch.randn(4, 5)).square().mean())
            optimizer.step()

    observation, log = trained(train)
    try:
        totals, _ = replayed(observation.step, 2)
    except CannotReplayError:
        return
    assert totals == log.losses
