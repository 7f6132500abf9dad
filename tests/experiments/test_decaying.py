"""A weak weight decay from the start: where the script's own keeps it from learning, and where that is not asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.training.decayed import AS_IT_IS, WEAK, trial
from netdoctor.experiments import decaying
from netdoctor.experiments.decaying import look
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Recording
from tests.experiments.capturing import captured

Make = Callable[[Iterator[nn.Parameter]], Optimizer]


@pytest.fixture(autouse=True)
def _hurt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is asked at all is read from the recording, and tested there."""
    monkeypatch.setattr(decaying, "strong", lambda _: True)
    monkeypatch.setattr(decaying, "harm", lambda _: type("Hurt", (), {"state": decaying.State.HURT}))


def trained(make: Make, noise: bool = False, rows: int = 32) -> TrainingStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    x = torch.randn(24, rows, 8)
    y = torch.randint(0, 3, (24, rows)) if noise else (x @ torch.randn(8, 3)).argmax(-1)

    def train() -> None:
        optimizer = make(model.parameters())
        for n in range(48):
            optimizer.zero_grad()
            F.cross_entropy(model(x[n % 24]), y[n % 24]).backward()
            optimizer.step()

    return captured(train)


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    matrices = [p for p in parameters if p.dim() > 1]
    return [{"params": matrices, "weight_decay": 0.5}, {"params": [p for p in parameters if p.dim() == 1]}]


MAKES: dict[str, tuple[Make, bool]] = {
    "adam": (lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1.0), True),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=90.0), True),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.5, weight_decay=0.5), True),
    "two groups": (lambda p: torch.optim.SGD(groups([*p]), lr=0.5), True),
    "adamw as usual": (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1), False),
    "adamw to grok": (lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1.0), False),
    "sgd as usual": (lambda p: torch.optim.SGD(p, lr=0.5, weight_decay=5e-4), False),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_decay_that_outweighs_the_gradient(name: str) -> None:
    make, found = MAKES[name]
    recording = Recording()
    recording.arms.update(look(recording, trained(make), Budget(60)))
    assert not recording.arms[WEAK].failure
    assert (trial(recording, 0.3, 3.0) is not None) is found


def test_what_cannot_be_learned_is_not_learned_with_a_weak_one() -> None:
    """By heart it may be: that is why other batches are asked than those that were trained on."""
    recording = Recording()
    step = trained(lambda p: torch.optim.Adam(p, lr=5e-2, weight_decay=1.0), noise=True, rows=3)
    recording.arms.update(look(recording, step, Budget(60)))
    assert recording.arms[WEAK].losses[-16:].mean() < 0.7 * recording.arms[AS_IT_IS].losses[-16:].mean()
    assert trial(recording, 0.3, 3.0) is None


def test_groups_without_a_decay_get_none() -> None:
    step = trained(MAKES["two groups"][0])
    with decaying.quiet():
        sandbox = decaying.Sandbox(step)
        weak = decaying._weakened(sandbox, step.iterations)
        sandbox.iterate(weak[0])
    assert [group["weight_decay"] for group in sandbox.optimizers[0].param_groups] == [1e-3, 0]
    actions = [action for action in step.iterations[0].actions if action.kind == "step"]
    assert [options["weight_decay"] for options in actions[0].options] == [0.5, 0]  # what was captured stays


def test_no_optimizer_no_question() -> None:
    step = trained(MAKES["sgd"][0])
    step.optimizers = []
    assert look(Recording(), step, Budget(60)) == {}
