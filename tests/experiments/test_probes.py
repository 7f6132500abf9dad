"""Leakage between samples, looking ahead, evaluation that does not repeat: each on models that do and models that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netdoctor.errors import MisuseError
from netdoctor.experiments.passes import differ
from netdoctor.experiments.probes import leakage, looking_ahead, unrepeatable


class Made(nn.Module):
    """A linear layer around a function of the hidden activations."""

    def __init__(self, function: Callable[[Made, Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.last, self.function = nn.Linear(width, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


def rows(count: int = 8, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def sequences(count: int = 4, length: int = 7, width: int = 6) -> Tensor:
    return torch.randn(count, length, width, generator=torch.Generator().manual_seed(0))


APART = {
    "mlp": lambda m, x: torch.relu(x),
    "batch norm in evaluation mode": lambda m, x: m.norm(x),
    "softmax over classes": lambda m, x: x.softmax(1),
}
MIXED = {
    "softmax over the batch": (lambda m, x: torch.softmax(x, dim=0), "softmax"),
    "mean over the batch": (lambda m, x: x - x.mean(0), "sub"),
    "only the last sees the first": (lambda m, x: x.cumsum(0), "cumsum"),
    "wrong reshape": (lambda m, x: x.t().reshape(8, 6), "reshape"),
}


@pytest.mark.parametrize("name", APART)
def test_samples_that_stay_apart(name: str) -> None:
    assert leakage(Made(APART[name]), rows()) is None


@pytest.mark.parametrize("name", MIXED)
def test_samples_that_are_mixed(name: str) -> None:
    function, operation = MIXED[name]
    found = leakage(Made(function), rows())
    assert found is not None
    assert (found.check, found.location.operation) == ("cross-sample-leakage", operation)
    assert found.location.file == __file__
    assert operation in found.location.text
    assert f"`{operation}`" in found.fixes[0].says


class Recurrent(nn.Module):
    def __init__(self, first: bool, both: bool = False) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 5, batch_first=first, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def test_the_batch_may_lie_along_another_dimension() -> None:
    assert leakage(Recurrent(first=True), sequences()) is None
    assert leakage(Recurrent(first=False), sequences(), dim=1) is None
    wrong = leakage(Recurrent(first=False), sequences())
    assert wrong is not None
    assert (wrong.location.module, wrong.location.operation) == ("rnn", "gru")


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.embed, self.causal, self.head = nn.Embedding(11, 6), causal, nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(F.scaled_dot_product_attention(x, x, x, is_causal=self.causal))


class Convolution(nn.Module):
    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding, self.conv = padding, nn.Conv1d(6, 6, 3, padding=0 if padding else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x.transpose(1, 2), (self.padding, 0))).transpose(1, 2)


TOKENS = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("causal", "leaks", "batch", "operation"),
    [
        (Recurrent(True), Recurrent(True, both=True), sequences(), "gru"),
        (Attention(True), Attention(False), TOKENS, "scaled_dot_product_attention"),
        (Convolution(2), Convolution(0), sequences(), "conv1d"),
    ],
    ids=["recurrent", "attention", "convolution"],
)
def test_looking_ahead(causal: nn.Module, leaks: nn.Module, batch: Tensor, operation: str) -> None:
    assert looking_ahead(causal, batch) is None
    found = looking_ahead(leaks, batch)
    assert found is not None
    assert (found.check, found.location.operation) == ("causal-leak", operation)
    assert found.fixes[0].code


def test_an_encoder_layer_with_and_without_its_mask() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(7)

    class Masked(nn.Module):
        def __init__(self, mask: Tensor | None) -> None:
            super().__init__()
            self.layer, self.mask = layer, mask

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, src_mask=self.mask)

    assert looking_ahead(Masked(mask), sequences()) is None
    assert looking_ahead(Masked(None), sequences()) is not None


def test_evaluation_that_repeats_itself_and_that_does_not() -> None:
    assert unrepeatable(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2)).train(), rows()) is None
    dropped = unrepeatable(Made(lambda m, x: F.dropout(x, 0.5)), rows())
    assert dropped is not None
    assert (dropped.check, dropped.location.operation) == ("nondeterministic-eval", "dropout")
    assert dropped.fixes[0].code == "training=self.training"
    noisy = unrepeatable(Made(lambda m, x: x + torch.randn_like(x)), rows())
    assert noisy is not None
    assert noisy.fixes[0].treatment == "fixed-noise"


def test_the_model_is_not_touched() -> None:
    model = Made(lambda m, x: m.norm(x)).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    leakage(model, rows())
    unrepeatable(model, rows())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model._forward_hooks
    assert not model.first._forward_pre_hooks


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_batches_are_taken_as_the_model_takes_them() -> None:
    target = torch.zeros(8, dtype=torch.long)
    for batch in (rows(), (rows(),), {"x": rows()}, (rows(), target), [rows(), target]):
        assert leakage(Made(APART["mlp"]), batch) is None
    assert leakage(Two(), (rows(), rows())) is None
    assert leakage(Two(), {"x": rows(), "y": rows()}) is None


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: leakage(Two(), torch.ones(1, 6)), "at least two samples along dimension 0"),
        (lambda: leakage(Made(APART["mlp"]), torch.ones(8, 6)), "all entries of this batch are the same"),
        (lambda: leakage(3, rows()), "must be a torch.nn.Module, not int"),  # type: ignore[arg-type]
        (lambda: looking_ahead(nn.Linear(6, 3), rows()), r"the output \(\(8, 3\)\) has no dimension of the input's"),
        (lambda: looking_ahead(nn.ReLU(), torch.ones(5)), "at least two positions along dimension 1"),
    ],
)
def test_what_cannot_be_told_is_said(ask: Callable[[], object], says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        ask()


def test_differences_are_relative_and_know_nan() -> None:
    nan, inf = float("nan"), float("inf")
    assert differ(torch.tensor([1.0, nan]), torch.tensor([1.0, nan])) == 0
    assert differ(torch.tensor([2.0, inf]), torch.tensor([1.0, inf])) == pytest.approx(0.5)
    assert differ(torch.tensor([1.0, nan]), torch.tensor([1.0, 0.0])) > 1
    assert differ(torch.tensor([]), torch.tensor([])) == 0
