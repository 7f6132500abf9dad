"""Loops that repeat themselves are followed by their calls alone, and nothing is lost by it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.origin import find_origin
from netdoctor.capture.step import Replay, preserved_random_state
from tests.capture.observing import observing, seed

STEPS = 40


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.dropout(torch.relu(self.body(x)), 0.1, self.training))


def run(
    change=lambda step, x, y: None, loss=None, steps=STEPS, model=None, between=lambda step, model: None, rate=0.05
):
    """A plain loop, observed; `change` may spoil a batch. Gives (observation, steps that were plain, losses)."""
    seed()
    model = model or Net()
    loss = loss or (lambda out, y: F.cross_entropy(out, y))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    plain, losses = [], []
    with observing() as observation:
        observation.observer.find_origin = find_origin
        for step in range(steps):
            x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
            change(step, x, y)
            plain.append(observation.observer.pattern.on and observation.observer.light is not None)
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            losses.append(value.item())
            between(step, model)
    return observation, plain, losses


def test_a_loop_that_repeats_itself_has_plain_steps():
    observation, plain, losses = run()
    assert sum(plain) >= 10
    assert not any(plain[:4])
    series = next(iter(observation.recording.losses.values()))
    assert series.steps.tolist() == list(range(STEPS))
    assert series.values.tolist() == pytest.approx(losses)
    counts = observation.recording.counts
    assert [counts[kind] for kind in ("zero_grad", "backward", "step")] == [STEPS] * 3
    assert "graphs retained" not in counts
    assert len(observation.recording.scalars["gradient norm"].values) == STEPS


def test_the_captured_steps_are_those_of_the_loop():
    """Also those that were put together from the pattern: each gives the loss that the user's run had, dropout and all."""
    observation, _, losses = run()
    step = observation.step
    assert len(step.iterations) == 24
    copies = step.copies()
    optimizer = torch.optim.SGD(copies.of(step.modules[0]).parameters(), lr=0.05)
    with preserved_random_state():
        for iteration, expected in zip(step.iterations, losses, strict=False):
            assert [action.kind for action in iteration.actions] == ["zero", "backward", "step"]
            optimizer.zero_grad()
            found = Replay(copies).loss(iteration.backwards[0])
            assert found.item() == expected
            found.backward()
            optimizer.step()


def test_a_nan_in_a_plain_step_is_traced():
    def change(step, x, y):
        if step == 35:
            x[4, 2] = math.nan

    observation, plain, _ = run(change, steps=36)
    assert plain[35]
    origin = observation.observer.origin
    assert (origin.phase, origin.step, origin.samples, origin.columns) == ("input", 35, (4,), (2,))
    assert origin.reproduced


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(5, 3)

    def forward(self, x):
        return torch.sqrt(self.lin(x).square() * x[:, :1].square())


def test_a_gradient_of_a_plain_step_is_traced():
    def change(step, x, y):
        if step == 35:
            x[1, 0] = 0.0

    observation, plain, _ = run(change, model=Root(), steps=36)
    assert plain[35]
    origin = observation.observer.origin
    assert (origin.phase, origin.operation, origin.step) == ("backward", "sqrt", 35)


def test_another_call_ends_the_pattern_and_nothing_is_missed():
    extra = []

    def between(step, model):
        if step == 30:
            F.mse_loss(model(torch.randn(4, 5)), torch.zeros(4, 3)).backward()
            extra.append(step)

    observation, plain, _ = run(between=between)
    assert extra == [30]
    assert plain[30]
    assert not plain[31]
    assert not plain[32]
    assert observation.recording.counts["backward"] == STEPS + 1
    assert len(observation.recording.losses) == 2


def test_evaluations_do_not_end_the_pattern():
    def between(step, model):
        model.eval()
        with torch.no_grad():
            model(torch.randn(3, 5))
        model.train()

    observation, plain, _ = run(between=between)
    assert sum(plain) >= 10
    assert observation.recording.counts["evaluation"] == STEPS


def test_a_function_under_a_name_of_its_own_is_not_relied_on():
    held = F.cross_entropy
    observation, plain, _ = run(loss=lambda out, y: held(out, y))
    assert not any(plain)
    assert len(observation.step.iterations) == 24


def replayed(observation, rate=0.05):
    """The losses of the captured steps, run again one by one on a copy that is trained as the model was."""
    step = observation.step
    copies = step.copies()
    optimizer = torch.optim.SGD(copies.of(step.modules[0]).parameters(), lr=rate)
    found = []
    with preserved_random_state():
        for iteration in step.iterations:
            optimizer.zero_grad()
            loss = Replay(copies).loss(iteration.backwards[0])
            found.append(loss.item())
            loss.backward()
            optimizer.step()
    return found


def varying():
    count = iter(range(1, 1000))
    return lambda out, y: F.cross_entropy(out, y) * (1 / next(count))


class Difference(nn.Module):
    """A loss of the user's own: a module without weights."""

    def forward(self, out, y):
        return (out - F.one_hot(y, 3)).square().mean()


LOSSES = {
    "a loss of torch.nn": nn.CrossEntropyLoss(),
    "a loss module": Difference(),
    "a difference": lambda out, y: (out - F.one_hot(y, 3)).square().mean(),
    "a difference the other way": lambda out, y: (F.one_hot(y, 3) - out).pow(2).mean(),
    "an index": lambda out, y: -out.log_softmax(-1)[torch.arange(len(y)), y].mean(),
    "gather": lambda out, y: -out.log_softmax(-1).gather(1, y[:, None]).mean(),
    "a mask": lambda out, y: torch.where(y[:, None] > 0, out, 0.1 * out).square().mean(),
    "a property": lambda out, y: (out @ out.T - (y[:, None] == y).float()).square().mean(),
    "a number": varying(),
    "noise": lambda out, y: (out + 0.1 * torch.randn_like(out) - F.one_hot(y, 3)).square().mean(),
    "several calls": lambda out, y: (out * y[:, None]).mean() ** 2 + (out * (1.0 - y[:, None])).square().mean(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_what_operators_are_given_is_kept(loss):
    """Plain steps though the targets meet an operator: every captured step, too, gives the loss that the user's run had."""
    observation, plain, losses = run(loss=loss)
    assert sum(plain) >= 10
    assert replayed(observation) == losses[:24]
    series = next(iter(observation.recording.losses.values()))
    assert series.values.tolist() == pytest.approx(losses)


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: F.cross_entropy(out, y, torch.tensor([1.0, 2.0, 3.0])),
        lambda out, y: F.cross_entropy(target=y, input=out, weight=torch.tensor([1.0, 2.0, 3.0])),
    ],
)
def test_a_loss_has_its_arguments_by_name_however_it_was_called(loss):
    """Who tries another loss on a copy reads them, of the first steps as of those that were put together from the pattern."""
    observation, plain, losses = run(loss=loss)
    assert sum(plain) >= 10
    entries = [iteration.backwards[0].entries[-1] for iteration in observation.step.iterations]
    assert {(entry.name, len(entry.args), "weight" in entry.kwargs) for entry in entries} == {
        ("cross_entropy", 2, True)
    }
    assert replayed(observation) == losses[:24]


@pytest.mark.parametrize("name", ["a loss of torch.nn", "a loss module", "a difference", "an index", "a mask", "noise"])
def test_a_nan_behind_operators_is_traced(name):
    def change(step, x, y):
        if step == 35:
            x[4, 2] = math.nan

    observation, plain, _ = run(change, steps=36, loss=LOSSES[name])
    assert plain[35]
    origin = observation.observer.origin
    assert (origin.phase, origin.step, origin.samples, origin.columns) == ("input", 35, (4,), (2,))
    assert origin.reproduced


def test_a_nan_that_an_operator_made_is_traced():
    def change(step, x, y):
        if step == 35:
            y[:] = 0

    observation, plain, _ = run(
        change, steps=36, loss=lambda out, y: (out.sigmoid() / y.float().sum().clamp(max=1)).mean()
    )
    assert plain[35]
    origin = observation.observer.origin
    assert (origin.phase, origin.operation, origin.step, origin.reproduced) == ("forward", "div", 35, True)


def test_the_watch_over_operators_ends_at_backward():
    depths = []
    model = Net()
    model.head.bias.register_hook(lambda _: depths.append(torch._C._len_torch_function_stack()))
    _, plain, _ = run(loss=LOSSES["a difference"], model=model)
    assert sum(plain) >= 10
    assert [depth for depth, is_plain in zip(depths, plain, strict=True) if is_plain] == [0] * sum(plain)
    assert torch._C._len_torch_function_stack() == 0


def test_what_is_numbered_by_gradients_alone_is_not_relied_on():
    """A detached output is part of the loss all the same, and its operations could not be told from those on data."""

    def loss(out, y):
        return (out.detach() * y[:, None] - out * y[:, None]).square().mean() + out.square().sum()

    observation, plain, losses = run(loss=loss)
    assert not any(plain)
    assert replayed(observation) == losses[:24]


@pytest.mark.parametrize("at", [13, 30])
def test_operations_in_another_number_end_the_pattern(at):
    """A loop over what a batch holds is alike in many steps: no step is kept as another than it was, and the next is watched."""
    done = []

    def loss(out, y):
        done.append(1)
        times = 2 if len(done) == at + 1 else 1
        return sum((out[i] * (1.0 + y[i])).sum().square() for i in range(times)) + out.square().mean()

    observation, plain, losses = run(loss=loss, rate=0.0)
    found = replayed(observation, rate=0.0)
    assert found == [iteration.backwards[0].value for iteration in observation.step.iterations]
    assert len(found) >= 20
    assert set(found) <= set(losses)
    assert plain[at] is (at >= 24)
    assert not plain[at + 1]


def test_two_models_in_turn():
    seed()
    made, judge = nn.Linear(4, 5), nn.Linear(5, 1)
    first, second = torch.optim.Adam(judge.parameters()), torch.optim.Adam(made.parameters())
    values = []
    with observing() as observation:
        for _ in range(STEPS):
            first.zero_grad()
            fake = made(torch.randn(6, 4))
            value = F.softplus(judge(fake.detach())).mean() + F.softplus(-judge(torch.randn(6, 5))).mean()
            value.backward()
            first.step()
            second.zero_grad()
            other = F.softplus(-judge(fake)).mean()
            other.backward()
            second.step()
            values += [value.item(), other.item()]
    assert observation.observer.containment.faults == []
    found = [s.values.tolist() for s in observation.recording.losses.values()]
    assert found == [pytest.approx(values[::2]), pytest.approx(values[1::2])]
    step = observation.step
    copies = step.copies()
    with preserved_random_state():
        replay = Replay(copies)
        assert replay.loss(step.iterations[0].backwards[0]).item() == values[0]


class Sometimes(Net):
    """Draws random numbers from one step on; `p` may be changed."""

    p = 0.0

    def forward(self, x):
        return self.head(F.dropout(torch.relu(self.body(x)), self.p, self.training))


def kept_states(model, starts, stops, steps=260):
    """In which steps the generator's state before the model was kept, and (observation, steps that were plain)."""
    kept, asked = [], {}

    def loss(out, y):
        calls = asked["observation"].observer.pattern.given(id(model))
        kept.append(bool(calls) and calls[0].context is not None and calls[0].context.cpu_random is not None)
        return F.cross_entropy(out, y)

    def between(step, model):
        model.p = 0.3 if starts <= step + 1 < stops else 0.0

    seed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plain = []
    with observing() as observation:
        asked["observation"] = observation
        for step in range(steps):
            x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))  # these are drawn before the model
            plain.append(observation.observer.pattern.on and observation.observer.light is not None)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            between(step, model)
    return [step for step in range(steps) if plain[step] and not kept[step]], plain


def test_the_state_of_the_generator_is_kept_where_the_model_draws():
    """A model that draws nothing needs none; one that begins to draw is found out at the next look."""
    without, plain = kept_states(Sometimes(), starts=100, stops=200)
    assert sum(step < 100 for step in without) >= 30
    assert not [step for step in without if 128 <= step < 200]
    assert sum(step >= 220 for step in without) >= 20  # and that it no longer does
    assert sum(plain[128:200]) > 60
    assert kept_states(Net(), starts=0, stops=0)[0] == []
