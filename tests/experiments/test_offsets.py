"""Language models that learn another token than the next one, and those that learn it in every style, or something else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import Copies, TrainingStep
from netdoctor.checks.structure.shifted_target import OFFSET, ShiftedTarget
from netdoctor.experiments.offsets import aligned, look, next_loss
from netdoctor.experiments.sandbox import Budget, Sandbox
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Places
from netdoctor.finding import Finding, Fix, Severity
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import captured

TOKENS, LENGTH, SAMPLES, WIDTH, STEPS = 9, 10, 16, 32, 12
Loss = Callable[[nn.Module], Tensor]


class Language(nn.Module):
    """A recurrent model, or one layer of attention over tokens and positions. `begins` puts a learned beginning before the tokens;
    `labels` are shifted inside."""

    def __init__(self, recurrent: bool = True, causal: bool = True, begins: bool = False, batch_first: bool = True):
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS + 1, WIDTH), nn.Embedding(LENGTH + 2, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=batch_first) if recurrent else None
        self.head, self.causal = nn.Linear(WIDTH, TOKENS), causal
        self.begin = nn.Parameter(torch.zeros(1, 1, WIDTH)) if begins else None

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.tokens(tokens)
        if self.begin is not None:
            x = torch.cat([self.begin.expand(len(x), 1, WIDTH), x], 1)
        if self.rnn is not None:
            logits = self.head(self.rnn(x)[0])
        else:
            x = x + self.places(torch.arange(x.shape[1]))
            logits = self.head(x + F.scaled_dot_product_attention(x, x, x, is_causal=self.causal))
        return logits if labels is None else cross_entropy(logits[:, :-1], labels[:, 1:])


def text(count: int = LENGTH + 1) -> Tensor:
    """Each token follows from the one before, mostly."""
    rows = [torch.randint(0, TOKENS, (SAMPLES,))]
    for _ in range(count - 1):
        rows.append(
            torch.where(torch.rand(SAMPLES) < 0.2, torch.randint(0, TOKENS, (SAMPLES,)), (3 * rows[-1] + 1) % TOKENS)
        )
    return torch.stack(rows, 1)


def noise(count: int = LENGTH + 1) -> Tensor:
    return torch.randint(0, TOKENS, (SAMPLES, count))


def cross_entropy(logits: Tensor, target: Tensor, ignored: int = -100) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=ignored)


def trained(model: nn.Module, loss: Loss, steps: int = STEPS) -> TrainingStep:
    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()

    return captured(train)


def judged(step: TrainingStep) -> tuple[Recording, list[Finding]]:
    recording = Recording(arms=look(Recording(), step, Budget(60)))
    return recording, [f for f in ShiftedTarget().judge(recording) if isinstance(f, Finding)]


def asked(model: nn.Module, loss: Loss, steps: int = STEPS) -> tuple[Arm | None, list[Finding]]:
    recording, found = judged(trained(model, loss, steps))
    return recording.arms.get(OFFSET), found


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# --- what is shifted twice -------------------------------------------------------------------------------------------


def in_the_loop(model: nn.Module) -> Tensor:
    tokens = text()
    x, y = tokens[:, :-1], tokens[:, 1:]
    return cross_entropy(model(x)[:, :-1], y[:, 1:])


def inside(model: nn.Module) -> Tensor:
    tokens = text()
    return model(tokens[:, :-1], labels=tokens[:, 1:].clone())


def rolled(model: nn.Module) -> Tensor:
    """The last ones are ignored, as a collate function does it that fills up."""
    tokens = text()
    labels = tokens.roll(-1, 1)
    labels[:, -1] = -100
    return model(tokens, labels)


def classes_second(model: nn.Module) -> Tensor:
    tokens = text()
    return F.cross_entropy(model(tokens[:, :-1])[:, :-1].transpose(1, 2), tokens[:, 2:])


def positions_first(model: nn.Module) -> Tensor:
    tokens = text().t()
    return cross_entropy(model(tokens[:-1])[:-1], tokens[2:])


TWICE: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "loop": (Language, in_the_loop),
    "model": (Language, inside),
    "attention": (lambda: Language(recurrent=False), inside),
    "rolled": (Language, rolled),
    "classes second": (lambda: Language(recurrent=False), classes_second),
    "positions first": (lambda: Language(batch_first=False), positions_first),
}


@pytest.mark.parametrize("name", TWICE)
def test_targets_that_are_shifted_twice(name: str) -> None:
    make, loss = TWICE[name]
    arm, (found,) = asked(make(), loss)
    assert arm is not None
    assert (arm.facts["offset"], arm.facts["twice"]) == (2.0, True)
    assert found.severity is Severity.ERROR


def test_one_shift_by_two_may_be_meant() -> None:
    def ahead(model: nn.Module) -> Tensor:
        tokens = text(LENGTH + 2)
        return cross_entropy(model(tokens[:, :-2]), tokens[:, 2:])

    arm, (found,) = asked(Language(), ahead)
    assert arm is not None
    assert (arm.facts["offset"], arm.facts["twice"]) == (2.0, False)
    assert found.severity is Severity.WARNING


def test_a_model_that_begins_by_itself_and_targets_that_are_shifted_all_the_same() -> None:
    def shifted(model: nn.Module) -> Tensor:
        tokens = text()
        return cross_entropy(model(tokens)[:, :-2], tokens[:, 1:])

    arm, _ = asked(Language(begins=True), shifted)
    assert arm is not None
    assert (arm.facts["offset"], arm.facts["moved"]) == (2.0, 1.0)


def test_the_wrong_way_where_there_is_something_to_predict() -> None:
    def back(model: nn.Module) -> Tensor:
        tokens = text()
        return cross_entropy(model(tokens)[:, 1:], tokens[:, :-1])

    arm, (found,) = asked(Language(), back, steps=24)
    assert arm is not None
    assert arm.facts["offset"] == -1.0
    assert float(arm.facts["learned"]) < 0.8
    assert found.severity is Severity.ERROR


@pytest.mark.parametrize(("draw", "told"), [(text, True), (noise, False)])
def test_a_shift_that_undoes_the_model_s_own(draw: Callable[[], Tensor], told: bool) -> None:
    def undone(model: nn.Module) -> Tensor:
        tokens = draw()
        labels = torch.full_like(tokens, -100)
        labels[:, 1:] = tokens[:, :-1]
        return model(tokens, labels)

    arm, found = asked(Language(), undone, steps=24)
    assert arm is not None
    assert (arm.facts["offset"], arm.facts["handed"]) == (0.0, True)
    assert bool(found) is told


def test_a_treated_copy_learns_the_next_tokens() -> None:
    step = trained(Language(), inside, steps=8)
    recording, (found,) = judged(step)
    treatment = treatment_of(Case(step, recording, found, Fix("next-token", ""), Places(step)))
    assert treatment is not None
    assert treatment.measure is not None
    left = []
    for treated in (False, True):
        bench = Bench(Sandbox(step), step.iterations)
        with bench.stack:
            if treated:
                treatment.apply(bench)
            bench.sandbox.run(bench.iterations, 60, Budget(60))
            left.append(treatment.measure.of(bench))
    assert left[1] < 70 < treatment.measure.limit < left[0]


def test_the_loss_on_the_next_tokens_is_that_of_plain_torch() -> None:
    model, tokens = Language(), text()
    step = trained(model, lambda m: cross_entropy(m(tokens[:, :-2]), tokens[:, 2:]), 3)
    ((one, backward),) = aligned(step)
    wanted = tokens[:, 1:-2]
    with torch.no_grad():
        lost = cross_entropy(model(tokens[:, :-2])[:, :-1], wanted)
    shares = wanted.flatten().bincount().double() / wanted.numel()
    ratio = float(lost) / float(-(shares * shares.log()).sum())
    copies = Copies(step.modules, step.leaves)
    assert next_loss(copies, [backward], one, 2) == pytest.approx(ratio, rel=1e-5)


# --- what is not -----------------------------------------------------------------------------------------------------


def right_in_the_loader(model: nn.Module) -> Tensor:
    tokens = text()
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def right_in_the_loop(model: nn.Module) -> Tensor:
    tokens = text()
    return cross_entropy(model(tokens)[:, :-1], tokens[:, 1:])


def right_inside(model: nn.Module) -> Tensor:
    tokens = text()
    return model(tokens, labels=tokens)


def begun_by_the_model(model: nn.Module) -> Tensor:
    tokens = text()
    return cross_entropy(model(tokens)[:, :-1], tokens)


def masked(model: nn.Module) -> Tensor:
    tokens = text()
    hidden = torch.rand(tokens.shape) < 0.3
    return cross_entropy(model(tokens.masked_fill(hidden, TOKENS)), tokens.masked_fill(~hidden, -100))


def all_that_is_two_ahead_is_seen(model: nn.Module) -> Tensor:
    tokens = text()
    return cross_entropy(model(tokens)[:, :-2], tokens[:, 2:])


def tags(model: nn.Module) -> Tensor:
    tokens = text()
    return cross_entropy(model(tokens), tokens // 2)


def echo(delay: int, draw: Callable[[], Tensor] = noise) -> Loss:
    def loss(model: nn.Module) -> Tensor:
        tokens = draw()
        return cross_entropy(model(tokens)[:, delay:], tokens[:, :-delay])

    return loss


def three_ahead(model: nn.Module) -> Tensor:
    tokens = text()
    return cross_entropy(model(tokens)[:, :-3], tokens[:, 3:])


def several_heads(model: nn.Module) -> Tensor:
    tokens = text()
    logits = model(tokens)
    return cross_entropy(logits[:, :-1], tokens[:, 1:]) + 0.3 * cross_entropy(logits[:, :-2], tokens[:, 2:])


def heads_by_turns(model: nn.Module) -> Tensor:
    tokens = text()
    logits = model(tokens)
    cross_entropy(logits[:, :-2], tokens[:, 2:]).backward(retain_graph=True)
    return cross_entropy(logits[:, :-1], tokens[:, 1:])


def periodic(model: nn.Module) -> Tensor:
    tokens = (torch.randint(0, TOKENS, (SAMPLES, 1)) + 4 * (torch.arange(LENGTH + 2) % 2)) % TOKENS
    return cross_entropy(model(tokens[:, :-2]), tokens[:, 2:])


def windows(model: nn.Module) -> Tensor:
    """What goes in comes out, and sample after sample goes on by one: along the samples there would be something to predict."""
    tokens = ((torch.arange(SAMPLES)[:, None] + torch.arange(LENGTH)) * 4 + torch.randint(0, TOKENS, ())) % TOKENS
    return cross_entropy(model(tokens), tokens)


def numbers(model: nn.Module) -> Tensor:
    waves = torch.sin(torch.arange(LENGTH + 2) + 6 * torch.rand(SAMPLES, 1))
    return F.mse_loss(model(waves[:, :-2, None]), waves[:, 2:, None])


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, WIDTH, batch_first=True), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "shifted in the loader": (Language, right_in_the_loader),
    "shifted in the loop": (Language, right_in_the_loop),
    "shifted inside": (Language, right_inside),
    "attention": (lambda: Language(recurrent=False), right_inside),
    "a beginning of its own": (lambda: Language(begins=True), begun_by_the_model),
    "masked tokens": (lambda: Language(recurrent=False, causal=False), masked),
    "a model that sees all": (lambda: Language(recurrent=False, causal=False), all_that_is_two_ahead_is_seen),
    "tags": (Language, tags),
    "a memory of one": (Language, echo(1)),
    "a memory of two": (Language, echo(2)),
    "three ahead": (Language, three_ahead),
    "several heads": (Language, several_heads),
    "heads by turns": (Language, heads_by_turns),
    "a text that repeats itself": (Language, periodic),
    "numbers": (Waves, numbers),
    "samples that go on": (lambda: Language(recurrent=False, causal=False), windows),
}


@pytest.mark.parametrize(("make", "loss"), [HEALTHY["a text that repeats itself"], HEALTHY["samples that go on"]])
def test_what_tells_nothing_is_not_asked_about(make: Callable[[], nn.Module], loss: Loss) -> None:
    assert asked(make(), loss)[0] is None


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_meant_to_be_so_is_no_finding(name: str) -> None:
    make, loss = HEALTHY[name]
    arm, found = asked(make(), loss)
    assert arm is None or not arm.failure
    assert found == []
