"""Weights whose gradients are products of matrices, and the cheap look at them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from netdoctor.capture.products import products
from netdoctor.capture.tripwire import LARGE, Gradients

SIDE = math.isqrt(LARGE) + 1


def names(module, loss):
    found, leaves = products(loss)
    known = {id(p): name for name, p in module.named_parameters()}
    assert {known[leaf] for leaf in leaves} == {name for name, p in module.named_parameters() if p.grad_fn is None}
    return {known[weight]: known.get(bias) for weight, bias in found.items()}


def test_dense_layers_are_products_and_know_their_biases():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5, bias=False), nn.Linear(5, 2))
    loss = model(torch.randn(7, 3)).square().mean()
    assert names(model, loss) == {"0.weight": "0.bias", "2.weight": None, "3.weight": "3.bias"}
    deep = model(torch.randn(2, 7, 3)).square().mean()  # with a time axis
    assert set(names(model, deep)) == {"0.weight", "2.weight", "3.weight"}


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.penalised, self.plain, self.added = (nn.Parameter(torch.rand(3, 3)) for _ in range(3))

    def forward(self, x):
        return torch.addmm(self.added, x, self.plain) @ self.penalised + self.penalised.sqrt().sum()


def test_what_else_makes_a_gradient_is_no_product():
    """A penalty on single entries, and a matrix that is added: NaNs of theirs are anywhere."""
    model = Odd()
    assert names(model, model(torch.randn(3, 3)).sum()) == {"plain": None}


def test_a_hook_may_put_anything_into_a_gradient():
    layer = nn.Linear(3, 3)
    layer.weight.register_hook(lambda gradient: gradient * 2)
    assert names(layer, layer(torch.randn(2, 3)).sum()) == {}


def test_convolutions_and_embeddings_are_no_products():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    assert names(model, model(torch.randn(2, 1, 4, 4)).sum()) == {"2.weight": "2.bias"}
    table = nn.Embedding(5, 3)
    assert names(table, table(torch.tensor([1, 2])).sum()) == {}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["input", "gradient"])
def test_one_row_and_one_column_tell_what_the_whole_would(bias, bad, where):
    """One bad number among the inputs of the last sample, or in the gradient of one of its outputs."""
    layer = nn.Linear(SIDE, SIDE, bias=bias)
    x, seed = torch.randn(4, SIDE), torch.randn(4, SIDE)
    loss = (layer(x) * seed).sum()
    look = Gradients([{"params": list(layer.parameters())}], products(loss)[0])
    loss.backward()
    assert math.isfinite(look.total())
    layer.zero_grad()
    (x if where == "input" else seed)[3, SIDE - 2] = bad
    (layer(x) * seed).sum().backward()
    assert not math.isfinite(look.total())
    assert not math.isfinite(look.norm())


def test_the_norm_is_that_of_all_gradients():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, 2), nn.LayerNorm(2))
    loss = model(torch.randn(3, SIDE)).square().mean()
    groups = [{"params": [model[0].weight, model[2].weight]}, {"params": [*model[1].parameters(), model[2].bias]}]
    look = Gradients(groups, products(loss)[0])
    assert look.norm() is None
    loss.backward()
    held = [p.grad for group in groups for p in group["params"]]
    assert look.norm() == pytest.approx(torch.nn.utils.get_total_norm(held).item(), rel=1e-5)
    assert look.of(groups)
    groups[0]["params"].append(model[0].bias)
    assert not look.of(groups)
