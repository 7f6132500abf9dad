"""Draws from what is trained, their own log-probability, and what goes out of sight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

from netdoctor.graph import StepGraph
from tests.capture.observing import observing, seed


def graph_of(loss_of) -> StepGraph:
    """The graph of a step whose loss is what `loss_of` makes of the outputs of a linear layer, 8 samples by 3."""
    seed()
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    inputs = torch.randn(8, 4)
    with observing() as observation:
        loss = loss_of(layer(inputs))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return observation.recording.graph


def by_hand(out):
    table = F.log_softmax(out, -1)
    return table.gather(1, torch.multinomial(table.exp(), 1))


def coins(out):
    dist = Bernoulli(logits=out)
    return dist.log_prob(dist.sample())


def normal_by_hand(out):
    drawn = torch.normal(out, out.detach().abs() + 0.5).detach()
    return -0.5 * ((drawn - out) / (out.detach().abs() + 0.5)).square() - (out.detach().abs() + 0.5).log()


def stacked(out):
    dist = Categorical(logits=out)
    actions = [dist.sample() for _ in range(3)]
    return Categorical(logits=torch.stack([out] * 3)[:, 2:6]).log_prob(torch.stack(actions)[:, 2:6])


@pytest.mark.parametrize(
    ("loss_of", "names"),
    [
        (lambda out: Categorical(logits=out).log_prob(Categorical(logits=out).sample()), {"gather"}),
        (by_hand, {"gather"}),
        (
            lambda out: F.cross_entropy(out, torch.multinomial(out.softmax(1), 1).squeeze(1), reduction="none"),
            {"cross_entropy"},
        ),
        (coins, {"binary_cross_entropy_with_logits"}),
        (lambda out: (d := Normal(out, 0.3)).log_prob(d.sample()), {"sub"}),
        (normal_by_hand, {"sub"}),  # without the constant
        (stacked, {"gather"}),
    ],
)
def test_a_log_probability_is_known_by_its_numbers(loss_of, names):
    graph = graph_of(loss_of)
    assert graph.draws
    for draw in graph.draws:
        assert graph.producer(draw.value).name in ("multinomial", "bernoulli", "normal")
        assert {graph.producer(value).name for value in draw.log_probs} == names


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda out: F.log_softmax(out, 1).gather(1, torch.randint(0, 3, (8, 1))),  # drawn, but not by the model
        lambda out: F.log_softmax(out, 1).gather(1, torch.multinomial(torch.ones(8, 3), 1)),
        lambda out: F.dropout(out) + torch.bernoulli(torch.full((8, 3), 0.5)) + torch.randn(8, 3),
        lambda out: Normal(out, 1.0).log_prob(torch.randn(8, 3)),
    ],
)
def test_what_is_not_drawn_from_the_model_is_none(loss_of):
    assert graph_of(loss_of).draws == ()


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda out: F.log_softmax(2 * out, 1).gather(
            1, torch.multinomial(out.softmax(1), 1)
        ),  # of another distribution
        lambda out: out.gather(1, torch.multinomial(out.softmax(1), 1)),  # not normalised
        # All alike, as of a policy that is still blank: a constant more or less would make a log-probability of any constant.
        lambda out: (0 * out).gather(1, torch.multinomial((0 * out).softmax(1), 1)) + 2.0,
        lambda out: (out.detach() + torch.bernoulli(out.sigmoid())) * out,
        lambda out: F.log_softmax(out, 1).detach().gather(1, torch.multinomial(out.softmax(1), 1)) + out,
    ],
)
def test_another_number_is_no_log_probability(loss_of):
    assert [draw.log_probs for draw in graph_of(loss_of).draws] == [()]


def taken_by(use) -> bool:
    def loss_of(out):
        drawn = Categorical(logits=out).sample()
        use(drawn)
        return Categorical(logits=out).log_prob(drawn)

    graph = graph_of(loss_of)
    (draw,) = graph.draws
    assert draw.log_probs
    readers = [draw.value]
    for value in readers:
        readers += [made for operation in graph.consumers(value) for made in operation.outputs]
    return not set(readers).isdisjoint(graph.taken)


@pytest.mark.parametrize(
    "use",
    [
        lambda drawn: int(drawn[0]),
        lambda drawn: [1, 2, 3][drawn[0]],
        lambda drawn: bool((drawn == 1).all()),
        lambda drawn: __import__("copy").deepcopy(drawn),
        lambda drawn: torch.zeros(2, 8, dtype=torch.long)[0].copy_(drawn),  # into a part of another tensor
        lambda drawn: torch.add(drawn, 1, out=torch.zeros(8, dtype=torch.long)),
        lambda drawn: torch.vmap(lambda one: one + 1)(drawn),
    ],
)
def test_what_no_operation_shows(use):
    assert taken_by(use)


def test_torch_itself_may_look_whether_it_is_valid():
    assert not taken_by(lambda drawn: None)
    assert not taken_by(lambda drawn: drawn.tolist())  # an operation, which the graph shows


@pytest.mark.parametrize("aside", [True, False])
def test_a_value_that_was_changed_by_way_of_another_tensor(aside):
    def loss_of(out):
        weights = torch.ones(2, 8, 3)
        (weights[0] if aside else weights).copy_(torch.full((8, 3), 2.0))
        return out * weights[0]

    assert bool(graph_of(loss_of).rewritten) is aside
