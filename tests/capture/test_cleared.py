"""Gradients cleared between backward and step, told from real loops, for each optimizer by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netdoctor.recording import Recording
from tests.capture.observing import observing, seed

Rounds = Callable[[nn.Module, nn.Module, list[torch.optim.Optimizer], Tensor], None]


def recorded(rounds: Rounds, steps: int = 6) -> Recording:
    """An encoder and a head, with an optimizer each, that are trained by these rounds."""
    seed(0)
    with observing() as observation:
        encoder, head = nn.Linear(3, 4), nn.Linear(4, 1)
        optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (head, encoder)]
        for _ in range(steps):
            rounds(encoder, head, optimizers, torch.randn(8, 3))
        return observation.recording


def zeroed(recording: Recording) -> tuple[int, int]:
    return recording.counts.get("zeroed step 0", 0), recording.counts.get("zeroed step 1", 0)


def test_clearing_everything_after_the_first_step_leaves_the_second_with_nothing() -> None:
    def rounds(encoder: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor) -> None:
        head(encoder(x)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            for module in (encoder, head):
                module.zero_grad()

    recording = recorded(rounds)
    assert zeroed(recording) == (0, 6)
    event = next(e for e in recording.events if e.kind == "zeroed step 1")
    assert event.source is not None
    assert event.source.text == "module.zero_grad()"
    assert event.detail == "for optimizer in optimizers:\n    optimizer.step()"


@pytest.mark.parametrize("to_none", [True, False])
def test_one_after_the_other_without_a_loop(to_none: bool) -> None:
    def rounds(encoder: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor) -> None:
        head(encoder(x)).square().mean().backward()
        optimizers[0].step()
        nn.Sequential(encoder, head).zero_grad(set_to_none=to_none)
        optimizers[1].step()

    recording = recorded(rounds)
    assert zeroed(recording) == (0, 6)
    assert next(e for e in recording.events if e.kind == "zeroed step 1").detail == "optimizers[1].step()"


def test_a_single_wrong_order_is_counted_for_both() -> None:
    def rounds(encoder: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor) -> None:
        head(encoder(x)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.zero_grad()
        for optimizer in optimizers:
            optimizer.step()

    assert zeroed(recorded(rounds)) == (6, 6)


def each_clears_its_own(
    encoder: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor
) -> None:
    head(encoder(x)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def duel(encoder: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor) -> None:
    """What the head's loss leaves at the encoder is thrown away, and the other way round."""
    head(encoder(x)).mean().backward()
    optimizers[0].step()
    encoder.zero_grad()
    (-head(encoder(x))).mean().backward()
    optimizers[1].step()
    head.zero_grad()


def another_is_cleared(encoder: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor) -> None:
    """Between the backward call and the step only the gradients of the other one are cleared."""
    head(encoder(x)).mean().backward()
    optimizers[0].zero_grad()
    optimizers[1].step()


def set_by_hand(encoder: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor) -> None:
    """Gradients of single samples are clipped and added up."""
    both = [*encoder.parameters(), *head.parameters()]
    kept = [torch.zeros_like(p) for p in both]
    for row in x:
        head(encoder(row)).square().sum().backward()
        for total, p in zip(kept, both, strict=True):
            total += p.grad.clamp(-1, 1) if p.grad is not None else 0
        for optimizer in optimizers:
            optimizer.zero_grad()
    for total, p in zip(kept, both, strict=True):
        p.grad = total
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("rounds", [each_clears_its_own, duel, another_is_cleared, set_by_hand])
def test_nothing_is_lost(rounds: Rounds) -> None:
    assert zeroed(recorded(rounds)) == (0, 0)


def test_a_loop_that_was_followed_by_its_calls_alone_is_quiet() -> None:
    assert zeroed(recorded(each_clears_its_own, steps=40)) == (0, 0)
