"""Two players on a copy: whether one helps the judge that it should deceive, in many kinds of games and in what is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.checks.loss.game import AS_IT_IS, PUSHES, TURNED
from netdoctor.checks.loss.generator_helps_discriminator import GeneratorHelpsDiscriminator
from netdoctor.experiments import opposition
from netdoctor.experiments.opposition import look
from netdoctor.experiments.sandbox import Budget
from netdoctor.finding import Abstention, Finding, Verdict
from netdoctor.recording import Recording
from tests.experiments.capturing import watched

SIZE, NOISE = 24, 4
Judge = Callable[[Tensor, Tensor], Tensor]
Maker = Callable[[Tensor, Tensor], Tensor]
Adam = torch.optim.Adam


def bce(scores: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))


def of_probability(scores: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy(scores, torch.full_like(scores, label))


def square(scores: Tensor, label: float) -> Tensor:
    return F.mse_loss(scores, torch.full_like(scores, label))


def soft(scores: Tensor, low: float, high: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.empty_like(scores).uniform_(low, high))


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return -gradients[0]


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


@dataclass
class Play:
    """A game: the judge's loss of (real, fake) scores, and the maker's of (fake, real) ones."""

    judge: Judge
    maker: Maker
    squash: bool = False
    how: str = "detach"  # the samples in the judge's turn: "detach", "no_grad", "same" (kept for the maker), "cat"
    two: bool = False  # backward calls of the judge
    frozen: bool = False  # the judge's weights in the maker's turn
    penalty: bool = False
    flip: bool = False  # the gradient of the samples on its way
    maximize: bool = False
    first: bool = True  # the judge steps first
    every: int = 1


def net(inputs: int, outputs: int, squash: bool = False) -> nn.Sequential:
    layers = [nn.Linear(inputs, 16), nn.LeakyReLU(0.2), nn.Linear(16, outputs)]
    return nn.Sequential(*layers, *([nn.Sigmoid()] if squash else []))


def slope_penalty(judge: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    mix = torch.rand(len(real), 1)
    point = (mix * real + (1 - mix) * fake.detach()).requires_grad_()
    slope = torch.autograd.grad(judge(point).sum(), point, create_graph=True)[0]
    return 10 * (slope.norm(dim=1) - 1).square().mean()


def train(play: Play, steps: int = 8) -> None:
    maker, judge = net(NOISE, 2), net(2, 1, play.squash)
    one = Adam(maker.parameters(), lr=2e-3, betas=(0.5, 0.99), maximize=play.maximize)
    other = Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.99))

    def samples() -> Tensor:
        return maker(torch.randn(SIZE, NOISE))

    def judges(kept: Tensor | None) -> None:
        real = torch.randn(SIZE, 2) + 2
        with torch.set_grad_enabled(play.how != "no_grad"):
            fake = samples() if kept is None else kept
        fake = fake.detach() if play.how != "no_grad" else fake
        if play.how == "cat":
            scores = judge(torch.cat([real, fake]))
            reals, fakes = scores[:SIZE], scores[SIZE:]
        else:
            reals, fakes = judge(real), judge(fake)
        other.zero_grad()
        if play.two:
            play.judge(reals, fakes[:0]).backward()
            play.judge(reals[:0], judge(fake)).backward()
        else:
            loss = play.judge(reals, fakes)
            (loss + slope_penalty(judge, real, fake) if play.penalty else loss).backward()
        other.step()

    def makes(kept: Tensor | None) -> None:
        judge.requires_grad_(not play.frozen)
        # An operation before the first module after a step.
        fake = samples() if kept is None else torch.cat([kept[:4], kept[4:]])
        fake = Flip.apply(fake) if play.flip else fake
        one.zero_grad()
        play.maker(judge(fake), judge(torch.randn(SIZE, 2) + 2)).backward()
        one.step()
        judge.requires_grad_(True)

    for _ in range(steps):
        kept = samples() if play.how == "same" else None
        for _ in range(play.every):
            judges(kept)
        makes(kept)


def labels(real: Tensor, fake: Tensor) -> Tensor:
    return bce(real, 1.0) + bce(fake, 0.0)


def parts(real: Tensor, fake: Tensor) -> Tensor:
    """Each term only where there is something to compare."""
    return bce(real, 1.0) if len(real) else bce(fake, 0.0)


def critic(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def probabilities(real: Tensor, fake: Tensor) -> Tensor:
    return of_probability(real, 1.0) + of_probability(fake, 0.0)


def by_hand(real: Tensor, fake: Tensor) -> Tensor:
    return -(torch.log(real + 1e-8) + torch.log(1 - fake + 1e-8)).mean()


def least_squares(real: Tensor, fake: Tensor) -> Tensor:
    return square(real, 1.0) + square(fake, 0.0)


def centred(real: Tensor, fake: Tensor) -> Tensor:
    return square(real, 1.0) + square(fake, -1.0)


def smooth(real: Tensor, fake: Tensor) -> Tensor:
    return soft(real, 0.8, 1.1) + soft(fake, 0.0, 0.2)


def relative(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(fake - real).mean()


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def to(label: float) -> Maker:
    return lambda fake, real: bce(fake, label)


SICK: dict[str, Play] = {
    "labels": Play(labels, to(0.0)),
    "without a gradient": Play(labels, to(0.0), how="no_grad", frozen=True),
    "samples of both turns": Play(labels, to(0.0), how="same"),
    "one pass": Play(labels, to(0.0), how="cat"),
    "two backward calls": Play(parts, to(0.0), two=True),
    "smoothed": Play(smooth, to(0.1)),
    "one-sided smoothing": Play(lambda r, f: bce(r, 0.9) + bce(f, 0.0), to(0.0)),
    "labels the other way": Play(lambda r, f: bce(r, 0.0) + bce(f, 1.0), to(1.0)),
    "probabilities": Play(probabilities, lambda f, r: of_probability(f, 0.0), squash=True),
    "by hand": Play(by_hand, lambda f, r: -torch.log(1 - f + 1e-8).mean(), squash=True),
    "a critic": Play(critic, lambda f, r: f.mean()),
    "a critic that goes up": Play(lambda r, f: -(r.mean() - f.mean()), lambda f, r: f.mean(), every=3),
    "a penalised critic": Play(critic, lambda f, r: f.mean(), how="no_grad", penalty=True),
    "hinge": Play(hinge, lambda f, r: f.mean()),
    "hinge of both": Play(hinge, lambda f, r: F.relu(1 + f).mean()),
    "least squares": Play(least_squares, lambda f, r: square(f, 0.0)),
    "logistic": Play(logistic, lambda f, r: F.softplus(f).mean()),
    "the wrong maximize": Play(labels, lambda f, r: -bce(f, 1.0)),
}

WELL: dict[str, Play] = {
    "labels": Play(labels, to(1.0)),
    "without a gradient": Play(labels, to(1.0), how="no_grad", frozen=True),
    "one pass": Play(labels, to(1.0), how="cat"),
    "two backward calls": Play(parts, to(1.0), two=True),
    "minimax": Play(labels, lambda f, r: -bce(f, 0.0)),
    "smoothed": Play(smooth, to(0.9)),
    "probabilities": Play(probabilities, lambda f, r: of_probability(f, 1.0), squash=True),
    "by hand": Play(by_hand, lambda f, r: torch.log(1 - f + 1e-8).mean(), squash=True),
    "a critic": Play(critic, lambda f, r: -f.mean()),
    "a penalised critic": Play(critic, lambda f, r: -f.mean(), how="no_grad", penalty=True, every=3),
    "hinge": Play(hinge, lambda f, r: -f.mean()),
    "least squares": Play(least_squares, lambda f, r: square(f, 1.0)),
    "least squares to the middle": Play(centred, lambda f, r: square(f, 0.0)),
    "relativistic": Play(relative, lambda f, r: relative(f, r)),
    "logistic": Play(logistic, lambda f, r: F.softplus(-f).mean()),
    "confusion": Play(labels, to(0.5)),
    "one loss minimised by both": Play(labels, lambda f, r: labels(r, f)),
    "a gradient that is turned": Play(labels, to(0.0), flip=True),
    "maximize": Play(labels, to(0.0), maximize=True),
    "samples alone": Play(lambda r, f: bce(f, 0.0), to(0.0)),
}


def recorded(run: Callable[[], Any]) -> Recording:
    torch.manual_seed(0)
    step, graph = watched(run)
    recording = Recording(graph=graph, graphs=[graph], facts={"several_optimizers": True})
    recording.arms |= look(recording, step, Budget(60))
    return recording


def found_in(recording: Recording) -> list[Finding]:
    assert not any(arm.failure for arm in recording.arms.values()), recording.arms
    return [item for item in GeneratorHelpsDiscriminator().judge(recording) if isinstance(item, Finding)]


@pytest.mark.parametrize("name", SICK)
def test_a_player_that_helps(name: str) -> None:
    recording = recorded(lambda: train(SICK[name]))
    (found,) = found_in(recording)
    assert found.fixes[0].trial is not None
    control, treated = (float(recording.arms[arm].facts["distance"]) for arm in (AS_IT_IS, TURNED))
    assert treated < control
    assert found.fixes[0].trial.verdict in {Verdict.CURED, Verdict.EASED}


@pytest.mark.parametrize("name", WELL)
def test_a_game(name: str) -> None:
    assert found_in(recorded(lambda: train(WELL[name]))) == []


def encoder_and_head() -> None:
    encoder, head = net(NOISE, 8), net(8, 1)
    optimizers = [Adam(m.parameters(), lr=1e-3) for m in (encoder, head)]
    for _ in range(8):
        x = torch.randn(SIZE, NOISE)
        for optimizer in optimizers:
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(head(encoder(x)), (x[:, :1] > 0).float()).backward()
            optimizer.step()


def actor_and_critic() -> None:
    actor, critic_net = net(3, 1), net(4, 1)
    optimizers = [Adam(m.parameters(), lr=1e-3) for m in (critic_net, actor)]
    for _ in range(8):
        state, action, later = torch.randn(SIZE, 3), torch.randn(SIZE, 1), torch.randn(SIZE, 3)
        with torch.no_grad():
            target = torch.randn(SIZE, 1) + 0.9 * critic_net(torch.cat([later, actor(later)], 1))
        optimizers[0].zero_grad()
        F.mse_loss(critic_net(torch.cat([state, action], 1)), target).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        (-critic_net(torch.cat([state, actor(state)], 1)).mean()).backward()
        optimizers[1].step()


def feature_matching() -> None:
    maker, body, head = net(NOISE, 2), net(2, 8), nn.Linear(8, 1)
    one, other = Adam(maker.parameters()), Adam([*body.parameters(), *head.parameters()])
    for _ in range(8):
        real = torch.randn(SIZE, 2) + 2
        other.zero_grad()
        labels(head(body(real)), head(body(maker(torch.randn(SIZE, NOISE)).detach()))).backward()
        other.step()
        one.zero_grad()
        (body(maker(torch.randn(SIZE, NOISE))).mean(0) - body(real).mean(0).detach()).square().mean().backward()
        one.step()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.real, self.kind = net(2, 8), nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.real(h), self.kind(h)


def auxiliary_classes(label: float) -> None:
    """AC-GAN: both sides want the classes of generated samples to be told."""
    maker, judge = net(NOISE + 3, 2), TwoHeads()
    one, other = Adam(maker.parameters(), lr=2e-3), Adam(judge.parameters(), lr=2e-3)
    for _ in range(8):
        kind = torch.randint(0, 3, (SIZE,))
        fake = maker(torch.cat([torch.randn(SIZE, NOISE), F.one_hot(kind, 3).float()], 1))
        real, told = judge(torch.randn(SIZE, 2) + 2)
        made, again = judge(fake.detach())
        other.zero_grad()
        (labels(real, made) + F.cross_entropy(told, kind) + F.cross_entropy(again, kind)).backward()
        other.step()
        made, again = judge(fake)
        one.zero_grad()
        (bce(made, label) + F.cross_entropy(again, kind)).backward()
        one.step()


def functional(label: float) -> None:
    """A judge of loose weights."""
    maker = net(NOISE, 2)
    weights = [(0.5 * torch.randn(*shape)).requires_grad_() for shape in ((2, 16), (16,), (16, 1), (1,))]
    one, other = Adam(maker.parameters(), lr=2e-3), Adam(weights, lr=2e-3)

    def judge(x: Tensor) -> Tensor:
        return torch.tanh(x @ weights[0] + weights[1]) @ weights[2] + weights[3]

    for _ in range(8):
        other.zero_grad()
        labels(judge(torch.randn(SIZE, 2) + 2), judge(maker(torch.randn(SIZE, NOISE)).detach())).backward()
        other.step()
        one.zero_grad()
        bce(judge(maker(torch.randn(SIZE, NOISE))), label).backward()
        one.step()


def domains(label: float, steps: Iterable[int] = range(8)) -> None:
    """An encoder of another domain beside a frozen one, and a judge that tells them apart."""
    source, target, judge = net(NOISE, 3), net(NOISE, 3), net(3, 1)
    one, other = Adam(target.parameters(), lr=2e-3), Adam(judge.parameters(), lr=2e-3)
    for _ in steps:
        with torch.no_grad():
            known = source(torch.randn(SIZE, NOISE))
        other.zero_grad()
        labels(judge(known), judge(target(torch.randn(SIZE, NOISE) + 1).detach())).backward()
        other.step()
        one.zero_grad()
        bce(judge(target(torch.randn(SIZE, NOISE) + 1)), label).backward()
        one.step()


def two_classes(label: float) -> None:
    """A judge with a score for each of two classes, real and generated, in one pass."""
    maker, judge = net(NOISE, 2), net(2, 2)
    one, other = Adam(maker.parameters(), lr=2e-3), Adam(judge.parameters(), lr=2e-3)
    kinds = torch.arange(2).repeat_interleave(SIZE)
    for _ in range(8):
        fake = maker(torch.randn(SIZE, NOISE))
        other.zero_grad()
        F.cross_entropy(judge(torch.cat([fake.detach(), torch.randn(SIZE, 2) + 2])), kinds).backward()
        other.step()
        one.zero_grad()
        F.cross_entropy(judge(fake), torch.full((SIZE,), int(label))).backward()
        one.step()


@pytest.mark.parametrize("run", [encoder_and_head, actor_and_critic, feature_matching])
def test_what_is_no_game(run: Callable[[], None]) -> None:
    assert found_in(recorded(run)) == []


@pytest.mark.parametrize("run", [auxiliary_classes, functional, domains, two_classes])
def test_other_games(run: Callable[[float], None]) -> None:
    assert found_in(recorded(lambda: run(1.0))) == []
    assert len(found_in(recorded(lambda: run(0.0)))) == 1


def negated_by_hand() -> None:
    """A maker that goes up the judge's own loss, by its gradients turned before the step."""
    maker, judge = net(NOISE, 2), net(2, 1)
    one, other = Adam(maker.parameters(), lr=1e-2), Adam(judge.parameters(), lr=1e-2)
    for _ in range(8):
        other.zero_grad()
        labels(judge(torch.randn(SIZE, 2) + 2), judge(maker(torch.randn(SIZE, NOISE)).detach())).backward()
        other.step()
        one.zero_grad()
        bce(judge(maker(torch.randn(SIZE, NOISE))), 0.0).backward()
        for parameter in maker.parameters():
            parameter.grad.neg_()
        one.step()


def test_gradients_that_are_turned_by_hand() -> None:
    recording = recorded(negated_by_hand)
    assert [type(said) for said in GeneratorHelpsDiscriminator().judge(recording)] == [Abstention]


def clipped_critic() -> None:
    """Weights that are clipped out of sight: the losses on a copy are others, and still tell which way the maker steps."""
    maker, judge = net(NOISE, 2), net(2, 1)
    one, other = Adam(maker.parameters(), lr=1e-2), Adam(judge.parameters(), lr=1e-2)
    for number in range(24):
        fake = maker(torch.randn(SIZE, NOISE))
        other.zero_grad()
        critic(judge(torch.randn(SIZE, 2) + 2), judge(fake.detach())).backward()
        other.step()
        for parameter in judge.parameters():
            parameter.data.clamp_(-0.3, 0.3)
        if number % 3 == 2:
            one.zero_grad()
            judge(maker(torch.randn(SIZE, NOISE))).mean().backward()
            one.step()


def test_a_critic_with_clipped_weights() -> None:
    (found,) = found_in(recorded(clipped_critic))
    assert found.fixes[0].trial is not None


def hard_clipped(sign: float = 1.0) -> None:
    """Weights that are clipped to next to nothing: no copy's losses are like those of the training."""
    maker, judge = net(NOISE, 2), net(2, 1)
    one, other = torch.optim.RMSprop(maker.parameters(), lr=5e-3), torch.optim.RMSprop(judge.parameters(), lr=5e-3)
    for number in range(24):
        fake = maker(torch.randn(SIZE, NOISE))
        other.zero_grad()
        critic(judge(torch.randn(SIZE, 2) + 2), judge(fake.detach())).backward()
        other.step()
        for parameter in judge.parameters():
            parameter.data.clamp_(-0.001, 0.001)
        if number % 3 == 2:
            one.zero_grad()
            (sign * judge(maker(torch.randn(SIZE, NOISE))).mean()).backward()
            one.step()


def test_where_no_copy_follows_only_a_touched_gradient_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opposition, "_apart", lambda step, known, player, sign: sign)  # nearer to the other way
    doubted = GeneratorHelpsDiscriminator().judge(recorded(hard_clipped))  # this file touches a gradient, further up
    assert [type(said) for said in doubted] == [Abstention]
    monkeypatch.setattr(opposition, "_TOUCHED", re.compile("no such text in th[i]s file"))
    assert len(found_in(recorded(hard_clipped))) == 1
    assert found_in(recorded(lambda: hard_clipped(-1.0))) == []


@pytest.mark.parametrize(
    ("text", "touched"),
    [
        ("p.grad.neg_()", True),
        ("p.grad *= -1", True),
        ("param.grad = -param.grad", True),
        ("x.register_hook(lambda g: -g)", True),
        ("self.net.register_full_backward_hook(turn)", True),
        ("torch.autograd.grad(scores.sum(), x, create_graph=True)", False),
        ("optimizer.zero_grad()", False),
        ("with torch.no_grad():", False),
        ("p.requires_grad_(False)", False),
    ],
)
def test_what_touches_a_gradient(text: str, touched: bool) -> None:
    assert bool(opposition._TOUCHED.search(text)) is touched


def test_one_optimizer_is_not_asked() -> None:
    step, graph = watched(lambda: train(SICK["labels"]))
    assert look(Recording(graph=graph, facts={"several_optimizers": False}), step, Budget(60)) == {}


def test_too_few_turns_tell_nothing() -> None:
    assert found_in(recorded(lambda: train(SICK["labels"], steps=2))) == []
    assert len(found_in(recorded(lambda: train(SICK["labels"], steps=3)))) == 1


def test_a_gradient_that_is_turned_is_seen_in_the_step() -> None:
    arm = recorded(lambda: train(WELL["a gradient that is turned"])).arms[PUSHES]
    assert arm.facts["helps"] == 0.0
