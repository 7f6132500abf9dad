"""Custom autograd functions in the captured graph: one operation each, whatever is measured of their tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.capture.observing import observing, seed


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


@pytest.mark.parametrize("size", [4, 5000])
def test_a_custom_function_is_one_operation_at_its_own_place(size: int) -> None:
    seed()
    first, second = nn.Linear(3, size), nn.Linear(size, 2)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.01)
    with observing() as observation:
        for _ in range(3):
            optimizer.zero_grad()
            second(Swish.apply(first(torch.randn(6, 3)))).square().mean().backward()
            optimizer.step()
    graph = observation.recording.graph
    assert graph is not None
    assert [o.index for o in graph.operations] == list(range(len(graph.operations)))
    assert [v.index for v in graph.values] == list(range(len(graph.values)))
    assert [o.name for o in graph.operations if o.name != "randn"] == [
        "linear",
        "Swish.apply",
        "linear",
        "square",
        "mean",
    ]
