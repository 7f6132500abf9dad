"""Steps with averages in place of the inputs: what of the loss comes of the inputs?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.experiments.blanking import BLANKED, GIVEN, compare
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from tests.experiments.capturing import fit, mlp


def test_what_comes_of_the_inputs_is_lost() -> None:
    torch.manual_seed(0)
    x = torch.randn(192, 6)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    step = fit(mlp(), F.cross_entropy, x, y, lambda p: torch.optim.Adam(p, lr=2e-2), steps=6)
    arms = compare(step, Budget(60), lambda _: None)
    assert arms[GIVEN].losses[-1] < 0.5 * arms[BLANKED].losses[-1]
    with quiet():
        untouched = Sandbox(step).run(step.iterations, 60, Budget(30)).losses
    assert arms[GIVEN].losses.tolist() == untouched


def test_a_model_that_reads_nothing_learns_as_well_without() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias + 0 * x[:, :3]

    x = torch.randn(96, 6)
    step = fit(Deaf(), F.cross_entropy, x, torch.randint(0, 3, (96,)), steps=3)
    arms = compare(step, Budget(60), lambda _: None)
    assert arms[GIVEN].losses.tolist() == arms[BLANKED].losses.tolist()


def test_tokens_become_those_of_the_first_sample() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (96, 5))
    model = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(40, 3))
    step = fit(model, F.cross_entropy, tokens, torch.randint(0, 3, (96,)), steps=3)
    copied = step.copies().of(model)
    rows, first = tokens[:32], tokens[:1].expand(32, 5)
    torch.manual_seed(0)
    arms = compare(step, Budget(60), lambda _: None)
    entry = step.iterations[0].backwards[0].entries[-1]
    target = entry.args[1].tensor if len(entry.args) > 1 else entry.kwargs["target"].tensor
    assert float(arms[GIVEN].losses[0]) == F.cross_entropy(copied(rows), target).item()
    assert float(arms[BLANKED].losses[0]) == F.cross_entropy(copied(first), target).item()


def test_inputs_that_do_not_vary_are_a_failure() -> None:
    step = fit(mlp(), F.cross_entropy, torch.ones(96, 6), torch.randint(0, 3, (96,)))
    assert "varies" in compare(step, Budget(60), lambda _: None)[BLANKED].failure


def test_without_time_there_is_no_arm() -> None:
    step = fit(mlp(), F.cross_entropy, torch.randn(96, 6), torch.randint(0, 3, (96,)))
    assert compare(step, Budget(0), lambda _: None) == {}
