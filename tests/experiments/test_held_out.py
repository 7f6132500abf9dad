"""Copies that learn from some batches and are asked about others: what counts is what was learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.experiments.held_out import learn
from netdoctor.experiments.sandbox import Budget
from tests.experiments.capturing import fit


class Distances(nn.Module):
    """The norm of each sample's difference to itself, which is zero, or to the origin."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.scale, self.same = nn.Parameter(torch.ones(3)), same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = x if self.same else torch.zeros_like(x)
        return ((x - other) * self.scale).square().sum(-1, keepdim=True).sqrt()


def test_a_first_loss_before_a_nan_is_nothing_that_was_learned() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(192, 3), torch.randn(192, 1)
    arms = [learn("x", fit(Distances(same), F.mse_loss, x, y, steps=6), lambda _: None, Budget(20)) for same in (0, 1)]
    assert arms[0].facts["best"] < arms[0].losses[0]
    assert "not finite" in arms[1].failure
