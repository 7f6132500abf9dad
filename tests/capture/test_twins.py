"""Parameters that start as copies of one another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netdoctor.capture.twins import twins


def found(*parameters: Tensor) -> list[tuple[int, int]]:
    order = {id(p): i for i, p in enumerate(parameters)}
    starts = [(p, p.detach().clone()) for p in parameters]
    return [(order[id(later)], order[id(earlier)]) for later, earlier in twins(starts)]


def test_copies_and_transposed_copies_are_found() -> None:
    one = nn.Parameter(torch.randn(4, 6))
    assert found(one, nn.Parameter(one.detach().clone())) == [(1, 0)]
    assert found(one, nn.Parameter(one.detach().t().clone())) == [(1, 0)]
    assert found(one, nn.Parameter(torch.randn(6)), nn.Parameter(one.detach().clone())) == [(2, 0)]


def test_values_that_differ_or_say_nothing_are_not() -> None:
    one = nn.Parameter(torch.randn(4, 6))
    near = one.detach().clone()
    near[1, 1] += 1e-6
    shuffled = one.detach().flatten()[torch.arange(23, -1, -1)].view(4, 6)
    assert found(one, nn.Parameter(near), nn.Parameter(shuffled)) == []
    assert found(nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(4, 6))) == []
    assert found(nn.Parameter(torch.arange(7.0)), nn.Parameter(torch.arange(7.0))) == []
    assert found(one, one.detach().clone()) == []  # a buffer


def test_the_value_of_the_start_counts() -> None:
    one, other = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
    assert list(twins([(one, torch.eye(6)), (other, torch.eye(6))])) == [(other, one)]
