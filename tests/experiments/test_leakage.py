"""Samples and positions that must not see one another: models whose dependences are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.leakage import POSITIONS, SAMPLES, leakage, samples_of
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import captured

Loss = Callable[[Tensor, Tensor], Tensor]


class Wrapped(nn.Module):
    """A linear layer around a function of known dependences."""

    def __init__(self, function: Callable[[Tensor], Tensor], inputs: int = 5, outputs: int = 3) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(inputs, outputs), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


def trained(model: nn.Module, batch: Callable[[], tuple[Tensor, ...]], loss: Loss) -> TrainingStep:
    torch.manual_seed(0)

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            *given, target = batch()
            optimizer.zero_grad()
            loss(model(*given), target).backward()
            optimizer.step()

    return captured(train)


def arms(step: TrainingStep, **facts: bool) -> dict[str, Arm]:
    return leakage(Recording(facts=dict(facts)), step, Budget(60))


def labelled(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*shape), torch.randint(0, 3, (shape[0],)))


@pytest.mark.parametrize(
    ("function", "leaks"),
    [
        (lambda h: h, False),
        (lambda h: h - h.mean(1, keepdim=True), False),
        (lambda h: h - h.mean(0), True),
        (lambda h: h.softmax(0), True),
        (lambda h: h + 0.01 * h.roll(1, 0), True),
        (lambda h: h.T.reshape(h.shape), True),
    ],
)
def test_samples(function: Callable[[Tensor], Tensor], leaks: bool) -> None:
    arm = arms(trained(Wrapped(function), labelled(12, 5), F.cross_entropy))[SAMPLES]
    assert arm.failure == ""
    assert arm.facts["leaks"] is leaks
    assert arm.facts["verdict"] == ("failed" if leaks else "passed")
    assert (arm.facts["dimension"], arm.facts["size"]) == (0.0, 12.0)


@pytest.mark.parametrize(("function", "inside"), [(lambda h: (h - h.mean(0)) * 0.0 + h, True), (lambda h: h, False)])
def test_samples_that_meet_inside_alone(function: Callable[[Tensor], Tensor], inside: bool) -> None:
    arm = arms(trained(Wrapped(function), labelled(12, 5), F.cross_entropy))[SAMPLES]
    assert (arm.facts["leaks"], arm.facts["inside"]) == (False, inside)


@pytest.mark.parametrize(("function", "leaks"), [(lambda h: F.normalize(h, dim=0), True), (F.normalize, False)])
def test_two_views_of_the_samples(function: Callable[[Tensor], Tensor], leaks: bool) -> None:
    """As many targets as both views have samples, as contrastive losses count them."""
    model = Wrapped(function)

    def loss(one: Tensor, two: Tensor) -> Tensor:
        both = torch.cat([one, two])
        near = (both @ both.T).fill_diagonal_(-9.0)
        return F.cross_entropy(near, torch.cat([torch.arange(12, 24), torch.arange(12)]))

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            x = torch.randn(12, 5)
            optimizer.zero_grad()
            loss(model(x), model(x + 0.1 * torch.randn(12, 5))).backward()
            optimizer.step()

    torch.manual_seed(0)
    arm = arms(captured(train))[SAMPLES]
    assert arm.failure == ""
    assert arm.facts["leaks"] is leaks


def test_where_it_is_born() -> None:
    arm = arms(trained(Wrapped(lambda h: torch.sigmoid(h).softmax(0)), labelled(12, 5), F.cross_entropy))[SAMPLES]
    assert arm.facts["operation"] == "softmax"
    assert "softmax(0)" in str(arm.facts["text"])


def test_batchnorm_takes_its_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    arm = arms(trained(model, labelled(12, 5), F.cross_entropy))[SAMPLES]
    assert arm.facts["leaks"] is False
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))
    assert "BatchNorm" in arms(trained(model, labelled(12, 5), F.cross_entropy))[SAMPLES].failure


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.rnn, self.out, self.first = nn.GRU(5, 8, batch_first=batch_first), nn.Linear(8, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        states = self.rnn(x)[0]
        out: Tensor = self.out(states.mean(1 if self.first else 0))
        return out if self.first else out[:, None].transpose(0, 1)[0]


@pytest.mark.parametrize("length", [7, 12])
def test_the_batch_is_found_behind_the_time(length: int) -> None:
    """(time, batch, features), also where both are equally long: no false alarm."""
    batch = lambda: (torch.randn(length, 12, 5), torch.randint(0, 3, (12,)))  # noqa: E731
    arm = arms(trained(Recurrent(batch_first=False), batch, F.cross_entropy))[SAMPLES]
    assert not arm.facts.get("leaks", False)


def walks(length: int, samples: int, batch_first: bool) -> Callable[[], tuple[Tensor, ...]]:
    """Sequences that go on from one time to the next, with a target for each time."""

    def batch() -> tuple[Tensor, ...]:
        x = torch.randn(length, samples, 5).cumsum(0)
        y = torch.randint(0, 3, (length, samples))
        return (x.transpose(0, 1), y.t()) if batch_first else (x, y)

    return batch


@pytest.mark.parametrize(("batch_first", "leaks"), [(False, False), (True, True)])
def test_a_target_for_each_time_and_sample(batch_first: bool, leaks: bool) -> None:
    """(time, samples) is right for a GRU as it is, and (samples, time) is not: which is which is seen by what goes on."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.rnn(x)[0])
            return out

    loss = lambda out, y: F.cross_entropy(out.transpose(1, 2), y)  # noqa: E731
    arm = arms(trained(Tagger(), walks(12, 9, batch_first), loss))[SAMPLES]
    assert arm.facts["leaks"] is leaks


def test_a_recurrence_over_the_batch() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.rnn(x)[0][:, -1])
            return out

    arm = arms(trained(Wrong(), labelled(12, 7, 5), F.cross_entropy))[SAMPLES]
    assert arm.facts["leaks"] is True
    assert (arm.facts["operation"], arm.facts["module"]) == ("gru", "rnn")


def test_graphs_link_samples_on_purpose() -> None:
    links = torch.eye(12).roll(1, 0)

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 3)

        def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
            return matrix @ self.first(x)

    batch = lambda: (torch.randn(12, 5), links, torch.randint(0, 3, (12,)))  # noqa: E731
    assert "linked" in arms(trained(Graph(), batch, F.cross_entropy))[SAMPLES].failure


@pytest.mark.parametrize(
    ("mix", "leaks"),
    [
        (lambda h: h, False),
        (lambda h: h.cumsum(1), False),
        (lambda h: h.cumsum(0), True),
        (lambda h: h.transpose(0, 1), False),  # time first in the output: which dimension is which cannot be told
        (lambda h: h.transpose(0, 1).cumsum(1), True),
    ],
)
def test_a_batch_that_is_as_large_as_its_sequences_are_long(mix: Callable[[Tensor], Tensor], leaks: bool) -> None:
    def batch() -> tuple[Tensor, ...]:
        text = torch.randint(0, 11, (8, 9))
        return text[:, :-1], text[:, 1:]

    model = Language(mix)
    model.register_buffer("mask", torch.ones(1, 8, 8).tril())
    found = arms(trained(model, batch, flat))[SAMPLES]
    assert found.failure == ""
    assert found.facts["leaks"] is leaks


def test_a_matrix_beside_square_sequences_may_link_samples() -> None:
    text = torch.randint(0, 11, (8, 9))
    model = Language(lambda h: h)
    model.register_buffer("links", torch.randint(0, 2, (8, 8)))
    step = trained(model, lambda: (text[:, :-1], text[:, 1:]), flat)
    assert "linked" in arms(step)[SAMPLES].failure


def test_similarities_and_opponents_are_left_alone() -> None:
    similar = Wrapped(lambda h: h @ h.T)
    batch = lambda: (torch.randn(12, 5), torch.arange(12))  # noqa: E731
    assert "compared" in arms(trained(similar, batch, F.cross_entropy))[SAMPLES].failure
    mixing = trained(Wrapped(lambda h: h - h.mean(0)), labelled(12, 5), F.cross_entropy)
    assert "against each other" in arms(mixing, several_optimizers=True)[SAMPLES].failure


# --- positions -------------------------------------------------------------------------------------------------------


class Language(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(11, width), mix, nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.mix(self.embed(tokens)))
        return out


def next_tokens() -> tuple[Tensor, ...]:
    text = torch.randint(0, 11, (8, 10))
    return text[:, :-1], text[:, 1:]


def flat(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), target.reshape(-1))


@pytest.mark.parametrize(
    ("mix", "leaks"),
    [
        (lambda h: h, False),
        (lambda h: h.cumsum(1), False),
        (lambda h: h.flip(1).cumsum(1).flip(1), True),
        (lambda h: h + h.roll(-1, 1), True),
        (lambda h: h - h.mean(1, keepdim=True), True),
        (lambda h: h + 0.01 * h[:, -1:], True),
    ],
)
def test_positions(mix: Callable[[Tensor], Tensor], leaks: bool) -> None:
    found = arms(trained(Language(mix), next_tokens, flat))
    assert found[POSITIONS].failure == ""
    assert found[POSITIONS].facts["leaks"] is leaks
    assert found[SAMPLES].facts["leaks"] is False


def padded(left: int, right: int) -> Callable[[Tensor], Tensor]:
    """A mean over three positions, behind a transposition; with as many channels as positions."""

    def mix(h: Tensor) -> Tensor:
        columns = h.transpose(1, 2)
        return F.avg_pool1d(F.pad(columns, (left, right)), 3, 1).transpose(1, 2)

    return mix


@pytest.mark.parametrize(("left", "right", "leaks"), [(1, 1, True), (2, 0, False)])
def test_as_many_channels_as_positions(left: int, right: int, leaks: bool) -> None:
    length = next_tokens()[0].shape[1]
    arm = arms(trained(Language(padded(left, right), width=length), next_tokens, flat))[POSITIONS]
    assert arm.facts["leaks"] is leaks
    if leaks:
        assert arm.facts["operation"] == "pad"


def test_the_whole_sequence_goes_in() -> None:
    batch = lambda: (text := torch.randint(0, 11, (8, 10)), text)  # noqa: E731
    loss = lambda out, text: flat(out[:, :-1], text[:, 1:])  # noqa: E731
    assert arms(trained(Language(lambda h: h + h.roll(-1, 1)), batch, loss))[POSITIONS].facts["leaks"] is True
    assert arms(trained(Language(lambda h: h.cumsum(1)), batch, loss))[POSITIONS].facts["leaks"] is False


def test_time_first() -> None:
    def batch() -> tuple[Tensor, ...]:
        text = torch.randint(0, 11, (10, 8))
        return text[:-1], text[1:]

    found = arms(trained(Language(lambda h: h.cumsum(0)), batch, flat))
    assert (found[POSITIONS].facts["leaks"], found[POSITIONS].facts["dimension"]) == (False, 0.0)
    assert (found[SAMPLES].facts["leaks"], found[SAMPLES].facts["dimension"]) == (False, 1.0)


@pytest.mark.parametrize(
    "target",
    [
        lambda text: text[:, :-1],  # an autoencoder
        lambda text: text[:, :-1] % 5,  # tags
        lambda text: text[:, :-1].roll(1, 1),  # the previous token
        lambda text: torch.randint(0, 11, (8, 9)),
    ],
)
def test_other_targets_are_not_asked(target: Callable[[Tensor], Tensor]) -> None:
    def batch() -> tuple[Tensor, ...]:
        text = torch.randint(0, 11, (8, 10))
        return text[:, :-1], target(text)

    assert POSITIONS not in arms(trained(Language(lambda h: h + h.roll(-1, 1)), batch, flat))


def test_a_constant_sequence_shows_no_shift() -> None:
    batch = lambda: (torch.ones(8, 9, dtype=torch.long), torch.ones(8, 9, dtype=torch.long))  # noqa: E731
    assert POSITIONS not in arms(trained(Language(lambda h: h), batch, flat))


def test_what_cannot_be_replayed_says_why() -> None:
    step = trained(Wrapped(lambda h: h), labelled(12, 5), F.cross_entropy)
    step.lost = "nothing was captured"
    assert arms(step)[SAMPLES].failure == "nothing was captured"


class Deaf(nn.Sequential):
    """Its `eval()` leaves it in training mode."""

    def train(self, mode: bool = True) -> Deaf:
        super().train()
        return self


def test_a_model_that_stays_in_training_mode_is_asked_in_evaluation_mode():
    model = Deaf(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    step = trained(model, labelled(6, 5), F.cross_entropy)
    assert arms(step)[SAMPLES].facts["leaks"] is False
    assert samples_of(Recording(), step.copies(), step) is False
    assert all(module.training for module in model.modules())
