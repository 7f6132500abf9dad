"""A NaN that a training gets only late is tried on the very step that made it, from the weights before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from netdoctor.finding import Certainty, Finding, Verdict
from netdoctor.judging import Options
from netdoctor.session import FindingError
from netdoctor.watching import watch

LATE = 60  # far beyond what is captured


@pytest.fixture(autouse=True)
def only_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other experiments have tests of their own."""
    monkeypatch.setattr("netdoctor.session.conduct", lambda *_: None)


def first_finding(train: Callable[[], None], check: str) -> Finding:
    torch.manual_seed(0)
    with watch(options=Options(select=(check,), budget=20)) as doctor:
        train()
    return doctor.report().findings[0]


class Pool(nn.Module):
    """A mean over the items that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.outer = nn.Linear(8, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = torch.relu(self.inner(x))
        pooled = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.outer(pooled)


def test_a_late_division_by_an_empty_mask() -> None:
    def train() -> None:
        model = Pool()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(LATE + 3):
            x, mask = torch.randn(8, 5, 4), torch.ones(8, 5)
            if step == LATE:
                mask[3] = 0
            loss = F.mse_loss(model(x, mask), x.mean((1, 2))[:, None])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    found = first_finding(train, "non-finite-activation")
    assert (found.location.step, found.location.samples, found.certainty) == (LATE, (3,), Certainty.PROVEN)
    assert found.fixes[0].code.endswith("/ mask.sum(1, keepdim=True).clamp_min(1e-8)")
    trial = found.fixes[0].trial
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert len(trial.control) <= 2


def test_in_a_loop_over_several_models_of_torchs_own() -> None:
    def train() -> None:
        inner, outer = nn.Linear(4, 8), nn.Linear(8, 1)
        optimizer = torch.optim.Adam([*inner.parameters(), *outer.parameters()], lr=1e-2)
        for step in range(LATE + 3):
            x, mask = torch.randn(8, 5, 4), torch.ones(8, 5)
            if step == LATE:
                mask[3] = 0
            pooled = (torch.relu(inner(x)) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            loss = F.mse_loss(outer(pooled), x.mean((1, 2))[:, None])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    trial = first_finding(train, "non-finite-activation").fixes[0].trial
    assert trial is not None
    assert trial.verdict is Verdict.CURED


class Block(nn.Module):
    """Runs again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sqrt(self.inner(x).square() * (x > 0))


def test_under_checkpointing_in_every_block_of_the_class() -> None:
    def train() -> None:
        blocks, head = nn.ModuleList([Block(), Block()]), nn.Linear(4, 1)
        optimizer = torch.optim.Adam([*blocks.parameters(), *head.parameters()], lr=1e-2)
        for _ in range(10):
            x = torch.randn(32, 4)
            h = x
            for block in blocks:
                h = checkpoint(block, h, use_reentrant=False)
            loss = F.mse_loss(head(h), x[:, :1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    found = first_finding(train, "non-finite-gradient")
    assert found.fixes[0].trial is not None
    assert found.fixes[0].trial.verdict is Verdict.CURED


@pytest.mark.parametrize(
    ("loss_of", "check"),
    [
        (lambda out, bad: torch.log(out.square() + 1).mean() if not bad else torch.log(out * 0).mean(), "activation"),
        (lambda out, bad: (out.square().sum(1) if not bad else (out * 0).square().sum(1).sqrt()).mean(), "gradient"),
    ],
)
def test_raise_stops_before_the_weights_are_touched(loss_of: Callable[[Tensor, bool], Tensor], check: str) -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before: list[Tensor] = []

    @watch(model, optimizer, on_finding="raise")
    def train() -> None:
        for step in range(LATE):
            before[:] = [p.detach().clone() for p in model.parameters()]
            loss = loss_of(model(torch.randn(6, 4)), step == 30)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with pytest.raises(FindingError) as caught:
        train()
    assert (caught.value.finding.check, caught.value.finding.location.step) == (f"non-finite-{check}", 30)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_raise_stops_at_the_step_whose_optimizer_makes_a_nan_that_the_loss_does_not_show() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.0)
    taken: list[int] = []

    @watch(model, optimizer, on_finding="raise")
    def train() -> None:
        for step in range(20):
            taken.append(step)
            loss = model(torch.randn(6, 4))[:, : 4 if step < 9 else 2].square().mean()
            if step == 9:
                optimizer.state.clear()  # rows that have no gradient are 0/0 from here on
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with pytest.raises(FindingError) as caught:
        train()
    assert taken[-1] == 9
    assert (caught.value.finding.check, caught.value.finding.location.step) == ("non-finite-parameter", 9)
