"""Twenty steps on a copy are the user's own twenty steps, bit for bit: losses and gradients at every step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.observing import assert_replays

STEPS = 20


def network():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def loss_of(model):
    return F.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,)))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
    "groups": lambda p: (
        lambda ps: torch.optim.AdamW([{"params": ps[:2], "lr": 1e-2}, {"params": ps[2:], "weight_decay": 0.0}], lr=1e-3)
    )(list(p)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    def train(log):
        model = network()
        optimizer = log.watch(OPTIMIZERS[name](model.parameters()))
        for _ in range(STEPS):
            optimizer.zero_grad()
            log.backward(loss_of(model))
            optimizer.step()

    assert_replays(train, STEPS)


SCHEDULES = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS),
    "warm up": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1.0, (n + 1) / 5)),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 2),
}


@pytest.mark.parametrize("optimizer", ["sgd, momentum", "adamw"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_clipping_and_schedules(name, optimizer):
    def train(log):
        model = network()
        made = log.watch(OPTIMIZERS[optimizer](model.parameters()))
        schedule = SCHEDULES[name](made)
        for _ in range(STEPS):
            made.zero_grad()
            log.backward(loss_of(model))
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            made.step()
            schedule.step()

    assert_replays(train, STEPS)


CLIPPING = {
    "norm": lambda p: nn.utils.clip_grad_norm_(p, 0.1),
    "one-norm": lambda p: nn.utils.clip_grad_norm_(p, 0.1, norm_type=1),
    "largest": lambda p: nn.utils.clip_grad_norm_(p, 0.01, norm_type=math.inf),
    "value": lambda p: nn.utils.clip_grad_value_(p, 0.01),
}


@pytest.mark.parametrize("name", CLIPPING)
def test_kinds_of_clipping(name):
    def train(log):
        model = network()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(STEPS):
            optimizer.zero_grad()
            log.backward(loss_of(model))
            CLIPPING[name](model.parameters())
            optimizer.step()

    assert_replays(train, STEPS)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_accumulation(to_none, first):
    """Also past the steps that are looked at in full, where what the gradients held is not read."""

    def train(log):
        model = network()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        for _ in range(STEPS):
            if first:
                optimizer.zero_grad(set_to_none=to_none)
            for _ in range(3):
                log.backward(loss_of(model) / 3)
            optimizer.step()
            if not first:
                optimizer.zero_grad(set_to_none=to_none)

    assert_replays(train, STEPS)


def test_gradients_that_are_never_cleared():
    def train(log):
        model = network()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.01))
        for _ in range(STEPS):
            log.backward(loss_of(model))
            optimizer.step()

    assert_replays(train, STEPS)


def test_gradients_cleared_by_hand():
    def train(log):
        model = network()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(STEPS):
            for parameter in model.parameters():
                parameter.grad = None
            log.backward(loss_of(model))
            optimizer.step()

    assert_replays(train, STEPS)


def test_an_optimizer_with_a_past():
    """Adam's moments from before the observed part, as after loading a checkpoint."""

    def train(log):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        state = {
            n: {"step": torch.tensor(5.0), "exp_avg": torch.full_like(p, 0.1), "exp_avg_sq": torch.full_like(p, 0.2)}
            for n, p in enumerate(model.parameters())
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        log.watch(optimizer)
        for _ in range(STEPS):
            optimizer.zero_grad()
            log.backward(loss_of(model))
            optimizer.step()

    assert_replays(train, STEPS)


def test_epochs_with_evaluation():
    def train(log):
        model = network()
        optimizer = log.watch(torch.optim.AdamW(model.parameters(), lr=1e-2))
        for _ in range(4):
            model.train()
            for _ in range(5):
                optimizer.zero_grad()
                log.backward(loss_of(model))
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for _ in range(3):
                    loss_of(model).item()

    assert_replays(train, STEPS)
