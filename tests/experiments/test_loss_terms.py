from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.experiments.loss_terms import Term, watched_terms
from netdoctor.experiments.sandbox import quiet
from tests.experiments.capturing import captured, fit

X, LABELS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
VALUES, YES = torch.linspace(-1, 1, 48).reshape(16, 3), (torch.arange(48) % 2).float().reshape(16, 3)


def terms(loss, y=VALUES, model=None) -> list[Term]:
    torch.manual_seed(0)
    step = fit(model or nn.Linear(6, 3), loss, X, y, steps=1, size=16)
    with quiet():
        value, found = watched_terms(step.copies(), step.iterations[0].backwards[0])
    assert value == pytest.approx(step.iterations[0].backwards[0].value)
    return found


def kinds(loss, y=VALUES, model=None) -> list[str]:
    return [term.kind for term in terms(loss, y, model)]


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda out, y: F.cross_entropy(out, y) / 4,
        lambda out, y: F.cross_entropy(out, y, reduction="none").mean(),
        lambda out, y: (F.cross_entropy(out, y, reduction="none") * torch.ones(16)).sum() / 16,
        lambda out, y: F.nll_loss(F.log_softmax(out, -1), y),
        lambda out, y: -F.log_softmax(out, -1)[torch.arange(16), y].mean(),
        lambda out, y: -F.log_softmax(out, -1).gather(1, y[:, None]).squeeze(1).mean(),
    ],
)
def test_classes(loss):
    (term,) = terms(loss, LABELS)
    assert term.kind == "classes"
    assert term.prediction is not None
    assert term.prediction.shape == (16, 3)
    assert torch.equal(term.target.reshape(-1), LABELS)


@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        nn.SmoothL1Loss(),
        lambda out, y: F.l1_loss(y, out),
        lambda out, y: ((out - y) ** 2).mean(),
        lambda out, y: (y - out).square().sum() / 16,
        lambda out, y: (out - y).abs().mean(),
        lambda out, y: ((out - y) * (out - y)).mean(),
        lambda out, y: 0.5 * torch.mean((out - y).pow(2)),
        lambda out, y: torch.norm(out - y),
    ],
)
def test_regression_knows_which_is_the_target(loss):
    (term,) = terms(loss)
    assert (term.kind, torch.equal(term.target, VALUES)) == ("regression", True)


def test_yes_or_no_and_shades_of_grey():
    assert kinds(F.binary_cross_entropy_with_logits, YES) == ["classes"]
    assert kinds(F.binary_cross_entropy_with_logits, VALUES.abs()) == ["regression"]


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: -F.mse_loss(out, y),
        lambda out, y: F.mse_loss(out, y) * -1.0,
        lambda out, y: 1.0 - F.mse_loss(out, y),
        lambda out, y: F.mse_loss(out, y) * out.mean(),
        lambda out, y: F.mse_loss(out, out.flip(0)),
        lambda out, y: F.mse_loss(out, out.detach().flip(0) + y),
        lambda out, y: -torch.exp(-(out - y).square()).mean(),
        lambda out, y: torch.logsumexp(out, 1).mean(),
    ],
)
def test_what_has_no_known_floor_is_other(loss):
    assert kinds(loss) == ["other"]


def test_terms_of_a_sum_are_told_apart():
    model = nn.Linear(6, 3)

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.mse_loss(out, y) + 1e-4 * penalty + 0.1 * torch.logsumexp(out, 1).mean()

    assert sorted(kinds(loss, VALUES, model)) == ["other", "penalty", "penalty", "regression"]


def test_a_loss_inside_of_the_model():
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.body(x), y)

    model = Whole()

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters())
        model(X, LABELS).backward()
        optimizer.step()

    step = captured(train)
    with quiet():
        _, found = watched_terms(step.copies(), step.iterations[0].backwards[0])
    assert [term.kind for term in found] == ["classes"]
