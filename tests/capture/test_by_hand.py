"""Loops without an optimizer: what counts as a backward call, which line moves the weights, and whose gradients were left."""

from __future__ import annotations

import linecache
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.gradients import moving_line
from netdoctor.experiments.sandbox import Budget, Sandbox
from netdoctor.recording import Recording
from tests.capture.observing import Observation, observing

X, Y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
Clear = Callable[[list[Tensor]], None]


def asked(steps: int = 12, **options: bool) -> Observation:
    """A training by `torch.autograd.grad`."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    with observing() as observation:
        for _ in range(steps):
            weights = list(net.parameters())
            gradients = torch.autograd.grad(F.cross_entropy(net(X), Y), weights, **options)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= 0.5 * gradient
    return observation


def test_gradients_that_are_asked_for_make_steps() -> None:
    observation = asked()
    recording = observation.recording
    assert recording.steps == 12
    assert recording.counts["backward"] == 12
    (losses,) = recording.losses.values()
    assert losses.values[-1] < losses.values[0]
    (moves,) = [event for event in recording.events if event.kind == "moves"]
    assert moves.source is not None
    assert moves.source.text == "weight -= 0.5 * gradient"


def test_such_a_loop_is_done_again_on_a_copy() -> None:
    observation = asked()
    (losses,) = observation.recording.losses.values()
    again = Sandbox(observation.step).run(observation.step.iterations, 8, Budget(60)).losses
    assert again == pytest.approx(losses.values[:8].tolist(), rel=1e-4)


@pytest.mark.parametrize("options", [{"create_graph": True}, {"retain_graph": True}])
def test_what_goes_on_to_be_differentiated_is_no_step(options: dict[str, bool]) -> None:
    assert asked(**options).recording.counts.get("backward", 0) == 0


@pytest.mark.parametrize("optimizer", [False, True])
def test_an_attack_and_a_look_beside_an_optimizer_are_no_steps(optimizer: bool) -> None:
    net = nn.Linear(4, 3)
    with observing() as observation:
        kept = torch.optim.SGD(net.parameters(), lr=0.1) if optimizer else None
        for _ in range(4):
            x = X.clone().requires_grad_()
            wanted = list(net.parameters()) if optimizer else x
            torch.autograd.grad(F.cross_entropy(net(x), Y), wanted)
    assert observation.recording.counts.get("backward", 0) == 0
    del kept  # it had to live until here


def loop(clear: Clear, loose: bool) -> Recording:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    weights = [w.detach().clone().requires_grad_() for w in net.parameters()] if loose else list(net.parameters())
    with observing() as observation:
        for _ in range(12):
            out = F.linear(X, *weights) if loose else net(X)
            F.cross_entropy(out, Y).backward()
            with torch.no_grad():
                for weight in weights:
                    assert weight.grad is not None
                    weight -= 0.05 * weight.grad
            clear(weights)
    return observation.recording


def to_none(weights: list[Tensor]) -> None:
    for weight in weights:
        weight.grad = None


def to_zero(weights: list[Tensor]) -> None:
    for weight in weights:
        assert weight.grad is not None
        weight.grad.zero_()


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize(("clear", "left"), [(to_none, False), (to_zero, False), (lambda weights: None, True)])
def test_gradients_left_from_before_are_seen_without_an_optimizer(clear: Clear, left: bool, loose: bool) -> None:
    assert loop(clear, loose).facts["gradients_before_backward"] is left


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("    p -= lr * g\n", True),
        ("    w[0] -= lr * g\n", True),
        ("    p.data += -lr * p.grad\n", True),
        ("    p.data = p.data - lr * p.grad\n", True),
        ("    p.sub_(lr * p.grad)\n", True),
        ("    w1 = w1 - lr * w1.grad\n", True),
        ("    p.grad.zero_()\n", False),
        ("    total += loss.item()\n", False),
        ("    # p -= lr * g\n", False),
        ("    print(i, loss.item(), sep='-=')\n", False),
    ],
)
def test_the_line_that_moves_the_weights(text: str, moves: bool) -> None:
    lines = ["loss.backward()\n", "with torch.no_grad():\n", text]
    linecache.cache["<loop>"] = (sum(map(len, lines)), None, lines, "<loop>")
    found = moving_line("<loop>", 1)
    assert (found is not None) is moves
    if found is not None:
        assert (found.line, found.text) == (3, text.strip())
