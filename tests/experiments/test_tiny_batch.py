from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.loss_terms import watched_terms
from netdoctor.experiments.sandbox import quiet
from netdoctor.experiments.tiny_batch import TinyBatch, cut
from tests.experiments.capturing import captured, fit, mlp


def tiny(step: TrainingStep) -> TinyBatch:
    with quiet():
        return cut(step, step.copies())


def target(step: TrainingStep, batch: TinyBatch) -> torch.Tensor:
    with quiet():
        _, terms = watched_terms(step.copies(), batch.iterations[0].backwards[0])
    assert terms[0].target is not None
    return terms[0].target


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(96, 6, generator=torch.Generator().manual_seed(0))


def test_the_first_eight_samples_with_their_targets(x):
    y = torch.arange(96) % 3
    step = fit(mlp(), F.cross_entropy, x, y)
    batch = tiny(step)
    assert (batch.samples, batch.indices, batch.conflicting) == (8, tuple(range(8)), ())
    assert torch.equal(target(step, batch), y[:8])


def test_more_than_one_class_is_picked(x):
    y = (torch.arange(96) >= 30).long()
    step = fit(mlp(), F.cross_entropy, x, y)
    batch = tiny(step)
    assert batch.samples == 8
    assert batch.indices[-2:] == (30, 31)
    assert set(target(step, batch).tolist()) == {0, 1}


def test_a_sequence_comes_first_and_the_batch_second():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0][-1])

    model, x, y = Reader(), torch.randn(20, 32, 4), torch.arange(32) % 3

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters())
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    batch = tiny(captured(train))
    assert (batch.samples, batch.dimension) == (8, 1)


def test_a_loop_that_counts_its_samples_by_itself(x):
    model, y = nn.Linear(6, 6), torch.randint(0, 3, (32, 2))

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters())
        F.cross_entropy(model(x[:32]).view(64, 3), y.reshape(64)).backward()
        optimizer.step()

    step = captured(train)
    batch = tiny(step)
    assert batch.samples == 8
    assert torch.equal(target(step, batch), y[list(batch.indices)].flatten())

    def train_again() -> None:
        optimizer = torch.optim.Adam(model.parameters())
        ((model(x[:32]).view(32, 3, 2) - 1.0) ** 2 * x[:32, :1, None]).mean().backward()
        optimizer.step()

    assert tiny(captured(train_again)).samples == 8


def test_small_batches_are_used_as_they_are(x):
    batch = tiny(fit(mlp(), F.cross_entropy, x, torch.arange(96) % 3, size=5))
    assert (batch.samples, len(batch.iterations), batch.indices) == (5, 1, ())


def test_single_samples_are_pooled_over_iterations(x):
    batch = tiny(fit(mlp(), F.cross_entropy, x, torch.arange(96) % 3, size=1, steps=12))
    assert (batch.samples, len(batch.iterations)) == (8, 8)


def test_where_nothing_can_be_cut_the_batch_is_whole():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
            return adjacency @ self.body(x)

    model, x, adjacency, y = Graph(), torch.randn(20, 6), torch.eye(20), torch.arange(20) % 3

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters())
        F.cross_entropy(model(x, adjacency), y).backward()
        optimizer.step()

    assert tiny(captured(train)).samples == 20


def test_same_input_other_label_is_told(x):
    same = torch.zeros_like(x)
    batch = tiny(fit(mlp(), F.cross_entropy, same, torch.arange(96) % 3))
    assert batch.conflicting == tuple(range(8))


def test_repeated_inputs_are_passed_over_where_others_are_left(x):
    x[1] = x[0]
    batch = tiny(fit(mlp(), F.cross_entropy, x, torch.arange(96) % 3))
    assert (batch.indices, batch.conflicting) == ((0, *range(2, 9)), ())


def test_accumulated_batches_count_once(x):
    model, y = mlp(), torch.arange(96) % 3

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters())
        for number in range(6):
            rows = slice(16 * number, 16 * number + 16)
            (F.cross_entropy(model(x[rows]), y[rows]) / 3).backward()
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()

    step = captured(train)
    assert len(step.iterations[0].backwards) == 3
    assert len(tiny(step).iterations[0].backwards) == 1


def test_a_warm_up_is_over(x):
    model, y = mlp(), torch.arange(96) % 3

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for number in range(3):
            optimizer.param_groups[0]["lr"] = 0.1 * number
            optimizer.zero_grad()
            F.cross_entropy(model(x[:32]), y[:32]).backward()
            optimizer.step()

    (step,) = [a for a in tiny(captured(train)).iterations[0].actions if a.kind == "step"]
    assert step.lrs == (0.2,)


def test_losses_against_each_other_are_refused(x):
    one, other = nn.Linear(6, 6), nn.Linear(6, 1)

    def train() -> None:
        first, second = torch.optim.Adam(one.parameters()), torch.optim.Adam(other.parameters())
        for _ in range(2):
            second.zero_grad()
            other(one(x).detach()).mean().backward()
            second.step()
            first.zero_grad()
            (-other(one(x)).mean()).backward()
            first.step()

    with pytest.raises(CannotReplayError, match="against each other"):
        tiny(captured(train))


def test_results_that_could_not_be_followed_are_refused(x):
    class Promise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
            result = self.body(x)
            return lambda: result

    promise = Promise()

    def train() -> None:
        optimizer = torch.optim.Adam(promise.parameters())
        (promise(x)() * promise.body.weight.square().sum()).mean().backward()
        optimizer.step()

    step = captured(train)
    with pytest.raises(CannotReplayError, match="out of sight"):
        tiny(step)
