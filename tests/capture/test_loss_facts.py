"""What is known of a loss from the operations behind it: its family, and the lowest value that it can take."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.observing import observing, seed


def facts_of(loss):
    seed()
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with observing() as observation:
        for _ in range(3):
            optimizer.zero_grad()
            x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
            loss(model, F.cross_entropy(model(x), y), x).backward()
            optimizer.step()
    return observation.recording.facts


@pytest.mark.parametrize(
    ("loss", "bound"),
    [
        (lambda model, entropy, x: entropy, 0.0),
        (lambda model, entropy, x: entropy + 0.1 * model.weight.square().sum(), 0.0),
        (lambda model, entropy, x: 0.5 * entropy + 0.5 * F.mse_loss(model(x)[:, 0], x[:, 0]), 0.0),
        (lambda model, entropy, x: -entropy, 0.0),
        (lambda model, entropy, x: entropy - 0.1 * model.weight.abs().mean(), -math.inf),
        (lambda model, entropy, x: entropy + torch.log(model.weight.abs().mean()), -math.inf),
        (lambda model, entropy, x: entropy - torch.log(model.weight.mean() * 0), -math.inf),
        (
            lambda model, entropy, x: torch.exp(-s) * entropy + 0.5 * s if (s := 0 * model.bias[0]) is not None else s,
            -math.inf,
        ),
        (lambda model, entropy, x: entropy + torch.exp(0 * model.bias[0]), 0.0),
    ],
    ids=[
        "alone",
        "penalty",
        "two losses",
        "negated",
        "a bonus",
        "a negative term",
        "an infinite term",
        "a learned variance",
        "its exponential",
    ],
)
def test_the_lowest_value_of_a_sum(loss, bound):
    facts = facts_of(loss)
    assert facts["loss_family"] == "cross_entropy"
    assert facts["loss_lower_bound"] == bound
