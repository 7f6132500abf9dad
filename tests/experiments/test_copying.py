"""Models that are given their target: those that copy it, and those that hold it on purpose, or predict in spite of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.structure.causal_leak import CausalLeak
from netdoctor.checks.structure.copied_target import COPIES
from netdoctor.experiments.copying import look
from netdoctor.experiments.sandbox import Budget
from netdoctor.finding import Finding
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import captured

TOKENS, BOS, LENGTH, SAMPLES, WIDTH = 8, 8, 6, 16, 32
STEPS = 60


def shifted(target: Tensor) -> Tensor:
    return torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], 1)


class Decoder(nn.Module):
    """A recurrent decoder over a sum of the source; `inside`: it shifts by itself, as `transformers` does."""

    def __init__(self, inside: bool = False) -> None:
        super().__init__()
        self.tokens, self.rnn = nn.Embedding(TOKENS + 1, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.encoder, self.head, self.inside = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, TOKENS), inside

    def forward(self, source: Tensor, given: Tensor) -> Tensor:
        state = self.encoder(self.tokens(source))[1]
        return self.head(self.rnn(self.tokens(shifted(given) if self.inside else given), state)[0])


class Language(nn.Module):
    """One layer of attention over tokens and positions."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS + 1, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.head, self.causal = nn.Linear(WIDTH, TOKENS), causal

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(x + F.scaled_dot_product_attention(x, x, x, is_causal=self.causal))


class Autoencoder(nn.Module):
    """A sequence through a bottleneck, beside a condition that it can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.condition = nn.Embedding(TOKENS, WIDTH), nn.Embedding(4, WIDTH)
        self.encoder, self.head = nn.Linear(LENGTH * WIDTH, 48), nn.Linear(48 + WIDTH, LENGTH * TOKENS)

    def forward(self, tokens: Tensor, kind: Tensor) -> Tensor:
        hidden = self.encoder(self.tokens(tokens).flatten(1)).tanh()
        return self.head(torch.cat([hidden, self.condition(kind)], 1)).view(-1, LENGTH, TOKENS)


class Writer(nn.Module):
    """One position at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.cell, self.head = nn.Embedding(9, WIDTH), nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(self.tokens(token), state)
        return self.head(state), state


def drawn() -> tuple[Tensor, Tensor]:
    source = torch.randint(0, TOKENS, (SAMPLES, LENGTH))
    return source, source.flip(1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def trained(model: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int = STEPS) -> TrainingStep:
    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()

    return captured(train)


def asked(step: TrainingStep) -> tuple[Arm | None, list[Finding]]:
    recording = Recording(arms=look(Recording(), step, Budget(60)))
    found = [item for item in CausalLeak().judge(recording) if isinstance(item, Finding)]
    return recording.arms.get(COPIES), found


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# --- what copies -----------------------------------------------------------------------------------------------------


def given_as_it_is(model: nn.Module) -> Tensor:
    source, target = drawn()
    return cross_entropy(model(source, target), target)


def classes_second(model: nn.Module) -> Tensor:
    source, target = drawn()
    return F.cross_entropy(model(source, given=target).transpose(1, 2), target)


def filled_up(model: nn.Module) -> Tensor:
    source, target = drawn()
    target[::2, -2:] = 0
    return F.cross_entropy(model(source, target).transpose(1, 2), target, ignore_index=0)


def test_a_decoder_that_is_given_its_target() -> None:
    arm, (found,) = asked(trained(Decoder(), given_as_it_is))
    assert arm is not None
    assert arm.facts["others"] == 1.0
    assert found.title == "the model is given its target: target holds at each position the token to be predicted there"
    assert found.location.text == "return cross_entropy(model(source, target), target)"
    assert found.fixes[0].code == (
        "target_in = torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], 1)\n"
        "return cross_entropy(model(source, target_in), target)"
    )


def test_an_argument_by_its_name_and_classes_in_the_second_dimension() -> None:
    _, (found,) = asked(trained(Decoder(), classes_second))
    assert "model(source, given=target_in).transpose(1, 2)" in found.fixes[0].code


def test_positions_that_the_loss_ignores_are_not_asked() -> None:
    assert len(asked(trained(Decoder(), filled_up))[1]) == 1


def test_a_language_model_that_predicts_the_token_it_stands_on() -> None:
    def own(model: nn.Module) -> Tensor:
        tokens, _ = drawn()
        return cross_entropy(model(tokens), tokens)

    arm, (found,) = asked(trained(Language(), own))
    assert arm is not None
    assert arm.facts["others"] == 0.0
    assert found.fixes[0].code == "logits, target = logits[:, :-1], tokens[:, 1:]"


@pytest.mark.parametrize("ahead", [0, 1], ids=["copies", "predicts the next"])
def test_a_loop_over_positions(ahead: int) -> None:
    def loop(model: nn.Module) -> Tensor:
        source, target = drawn()
        given, state, loss = (target, shifted(target))[ahead], F.one_hot(source).float().reshape(SAMPLES, -1), 0.0
        state = state[:, :WIDTH].contiguous()
        for place in range(LENGTH):
            logits, state = model(given[:, place], state)
            loss = loss + F.cross_entropy(logits, target[:, place])
        return loss

    _, found = asked(trained(Writer(), loop))
    assert len(found) == 1 - ahead
    assert all("t - 1" in one.fixes[0].code for one in found)


# --- what does not ---------------------------------------------------------------------------------------------------


def given_shifted(model: nn.Module) -> Tensor:
    source, target = drawn()
    return cross_entropy(model(source, shifted(target)), target)


def copy_task(model: nn.Module) -> Tensor:
    source, _ = drawn()
    return cross_entropy(model(source, shifted(source)), source)


def condition(model: nn.Module) -> Tensor:
    tokens, _ = drawn()
    return cross_entropy(model(tokens, torch.randint(0, 4, (SAMPLES,))), tokens)


def of_itself(model: nn.Module) -> Tensor:
    tokens, _ = drawn()
    return cross_entropy(model(tokens), tokens)


def masked(model: nn.Module) -> Tensor:
    tokens, _ = drawn()
    return cross_entropy(model(tokens.masked_fill(torch.rand(tokens.shape) < 0.15, BOS)), tokens)


def next_token(model: nn.Module) -> Tensor:
    tokens = torch.randint(0, TOKENS, (SAMPLES, 1)) + torch.arange(LENGTH + 1)
    tokens = tokens % TOKENS
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "shifted in the loop": (Decoder, given_shifted),
    "shifted by the model": (lambda: Decoder(inside=True), given_as_it_is),
    "the encoder is given the target, the decoder is shifted": (Decoder, copy_task),
    "an autoencoder with a condition": (Autoencoder, condition),
    "attention that sees everything": (lambda: Language(causal=False), of_itself),
    "masked tokens": (lambda: Language(causal=False), masked),
    "next token": (Language, next_token),
    "each position by itself": (
        lambda: nn.Sequential(nn.Embedding(TOKENS, 4), nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, TOKENS)),
        of_itself,
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_meant_to_be_so_passes(name: str) -> None:
    model, loss = HEALTHY[name]
    assert asked(trained(model(), loss))[1] == []


def test_a_copy_that_still_needs_its_source_is_not_told() -> None:
    """What is predicted before the training got anywhere follows nothing."""
    arm, found = asked(trained(Decoder(), given_as_it_is, steps=1))
    assert arm is not None
    assert found == []


def test_other_targets_make_no_arm() -> None:
    def labelled(model: nn.Module) -> Tensor:
        source, _ = drawn()
        return cross_entropy(model(source), (source + 1) % TOKENS)

    assert asked(trained(Language(), labelled, steps=3)) == (None, [])
