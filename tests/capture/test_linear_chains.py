"""Matrices that multiply one another in autograd's graph: nets of plain tensors, with and without something in between."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from netdoctor.capture.linear_chains import KIND, pairs
from tests.capture.observing import observing, seed

X = torch.linspace(-1, 1, 24).reshape(6, 4)
Function = Callable[[Tensor], Tensor]


def net(between: Function, sizes: tuple[int, ...] = (4, 8, 8, 2)) -> tuple[list[Tensor], Function]:
    seed()
    weights = [torch.randn(a, b, requires_grad=True) for a, b in pairwise(sizes)]
    biases = [torch.zeros(b, requires_grad=True) for b in sizes[1:]]

    def forward(x: Tensor) -> Tensor:
        for weight, bias in zip(weights, biases, strict=True):
            x = between(x @ weight + bias)
        return x

    return weights, forward


def found(weights: list[Tensor], loss: Tensor) -> list[tuple[int, int]]:
    number = {id(weight): n for n, weight in enumerate(weights)}
    return [(number[id(a)], number[id(b)]) for a, b in pairs(loss)]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda h: h, [(0, 1), (1, 2)]),
        (lambda h: h.reshape(h.shape), [(0, 1), (1, 2)]),
        (torch.tanh, []),
        (torch.relu, []),
        (lambda h: F.layer_norm(h, h.shape[-1:]), []),
        (lambda h: h * h, []),
        (lambda h: h + h.relu(), []),
    ],
)
def test_nothing_but_a_bias_between_two_products(between: Function, expected: list[tuple[int, int]]) -> None:
    weights, forward = net(between)
    assert found(weights, forward(X).square().mean()) == expected
    assert found(weights, vmap(forward)(X).square().mean()) == expected


@pytest.mark.parametrize(("between", "expected"), [(lambda h: h, [(0, 1), (1, 2)]), (torch.tanh, [])])
def test_inside_of_derivatives(between: Function, expected: list[tuple[int, int]]) -> None:
    weights, forward = net(between, (4, 8, 8, 1))
    slope = vmap(grad(lambda x: torch.tanh(forward(x)).squeeze()))
    assert found(weights, (slope(X).sum(1) + torch.tanh(forward(X)).squeeze()).square().mean()) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"), [((8, 4, 8), []), ((8, 7, 8), []), ((8, 8, 8), [(0, 1)]), ((4, 4, 8), [(0, 1)])]
)
def test_a_narrower_middle_is_a_factorisation(sizes: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    weights, forward = net(lambda h: h, sizes)
    assert found(weights, forward(torch.ones(6, sizes[0])).square().mean()) == expected


def test_what_others_read_is_no_mere_step_on_the_way() -> None:
    a, b = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    hidden = X @ a
    assert found([a, b], (hidden @ b + torch.sigmoid(hidden)).square().mean()) == []
    scores = (X @ a) @ (X @ b).T  # queries and keys
    assert found([a, b], scores.square().mean()) == []


def test_columns_and_layers_of_torchs_own() -> None:
    a, b = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    assert found([a, b], (b @ (a @ X.T)).square().mean()) == [(0, 1)]
    assert found([a, b], F.linear(F.linear(X, a), b).square().mean()) == [(0, 1)]


def test_a_loss_without_a_graph() -> None:
    assert pairs(torch.ones(())) == []


def test_they_are_told_by_name() -> None:
    weights, forward = net(lambda h: h)
    with observing() as observation:
        optimizer = torch.optim.SGD(weights, lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            vmap(forward)(X).square().mean().backward()
            optimizer.step()
    (first, second) = [event.detail for event in observation.recording.events if event.kind == KIND]
    assert first.split("\n")[1] == second.split("\n")[0] in observation.recording.parameters
