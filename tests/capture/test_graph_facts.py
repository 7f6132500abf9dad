"""What the graph of a step tells of gradients: targets that move, and leaves that were made on the way."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.checks.loss.comparisons import graphs
from tests.capture.observing import observing, seed


def byol(net, other, x):
    return -F.cosine_similarity(net(x), net(x + 0.1).detach()).mean()


def target_network(net, other, x):
    with torch.no_grad():
        target = other(x)
    return F.mse_loss(net(x), target)


def temporal_difference(net, other, x):
    out = net(x)
    return (out[:, 0] - (1.0 + 0.9 * net(x + 1).max(1).values.detach())).square().mean()


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.codes = nn.Linear(5, 3), nn.Parameter(torch.randn(7, 3))

    def forward(self, x):
        z = self.lin(x)
        q = self.codes[torch.cdist(z, self.codes).argmin(1)]
        return F.mse_loss(q, z.detach()) + F.mse_loss(z, q.detach()) + (z + (q - z).detach()).square().mean()


def quantised(net, other, x):
    return net(x)


class Binary(nn.Linear):
    def forward(self, x):
        scale = self.weight.abs().mean(1, keepdim=True).detach()
        return F.linear(x, torch.tanh(self.weight) * scale, self.bias)


class ByHand(nn.Module):
    """A softmax by hand and a rounding with a straight-through gradient."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(5, 3)

    def forward(self, x):
        z = self.lin(x)
        e = torch.exp(z - z.max(1, keepdim=True).values.detach())
        p = e / e.sum(1, keepdim=True)
        return p + (torch.round(p) - p).detach()


def plainly(net, other, x):
    return F.mse_loss(net(x), torch.zeros(6, 3))


@pytest.mark.parametrize(
    ("make", "loss", "moves"),
    [
        (lambda: nn.Linear(5, 3), byol, True),
        (lambda: nn.Sequential(nn.Linear(5, 3)), target_network, True),
        (lambda: nn.Linear(5, 3), temporal_difference, True),
        (Quantised, quantised, True),
        (lambda: Binary(5, 3), plainly, False),
        (ByHand, plainly, False),
    ],
)
def test_what_moves(make, loss, moves):
    seed()
    net = make()
    other = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with observing() as observation:
        for _ in range(6):
            optimizer.zero_grad()
            loss(net, other, torch.randn(6, 5)).backward()
            optimizer.step()
    assert any(graph.loss is not None for graph in graphs(observation.recording))
    assert observation.recording.facts["moving_target"] is moves


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
@pytest.mark.parametrize(
    ("loss", "leaves", "reached"),
    [
        (lambda net, x: torch.tensor([net(x).mean(), net(x).square().mean()], requires_grad=True).sum(), 1, False),
        (lambda net, x: torch.stack([net(x).mean(), net(x).square().mean()]).sum(), 0, True),
        (lambda net, x: net(x.requires_grad_()).mean(), 0, True),
    ],
)
def test_a_leaf_that_an_operation_made_ends_the_gradient(loss, leaves, reached):
    seed()
    net = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with observing() as observation:
        for _ in range(3):
            optimizer.zero_grad()
            loss(net, torch.randn(6, 5)).backward()
            optimizer.step()
    graph = observation.recording.graph
    assert sum(value.leaf for value in graph.values) == leaves
    names = {graph.values[value].name for value in graph.values_behind(by_gradient=True)}
    assert ("weight" in names) is reached
    assert "weight" in {graph.values[value].name for value in graph.values_behind(by_gradient=False)}
