"""Small tensors that a loop overwrites are captured as they were; nothing else of the captured calls changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.spares import MOST_BYTES, ROOM, Spares
from netdoctor.capture.step import Replay, TrainingStep, preserved_random_state, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant, Entry, version
from netdoctor.errors import CannotReplayError
from tests.capture.observing import observing, seed


def one_buffer(numbers: int = 4, steps: int = 6) -> tuple[TrainingStep, list[float]]:
    """Two losses per step, whose targets lie one after the other in the same buffer; as in the DCGAN tutorial."""
    seed()
    model, target, losses = nn.Linear(3, 1), torch.zeros(numbers), []
    with observing() as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            for value in (1.0, 0.0):
                target.fill_(value)
                loss = F.mse_loss(model(torch.randn(numbers, 3)).view(-1), target)
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
    return seen.step, losses


def test_labels_in_one_buffer_are_replayed_as_they_were() -> None:
    step, losses = one_buffer()
    backwards = step.iterations[0].backwards
    for backward in backwards:
        refuse_overwritten(backward)
    with preserved_random_state():
        replay = Replay(step.copies())
        found = [replay.loss(backward).item() for backward in backwards]
    assert found == losses[:2]


def test_large_buffers_are_not_copied() -> None:
    step, _ = one_buffer(MOST_BYTES // 4 + 1, steps=2)
    with pytest.raises(CannotReplayError, match="overwritten"):
        refuse_overwritten(step.iterations[0].backwards[0])


def loss_of(*tensors: torch.Tensor) -> tuple[Backward, list[Constant]]:
    constants = [Constant(tensor, version(tensor)) for tensor in tensors]
    entry = Entry(torch.add, None, tuple(constants), {})
    return Backward([entry], [], ("t.py", 1)), constants


def test_what_is_overwritten_until_the_next_iteration_is_over_is_replaced() -> None:
    for iterations, replaced in ((0, True), (1, True), (2, False)):
        spares, tensor = Spares(), torch.zeros(3)
        backward, (constant,) = loss_of(tensor)
        spares.take(backward)
        for _ in range(iterations):
            spares.end_iteration()
        tensor.add_(1)
        spares.settle()
        assert constant.overwritten is not replaced
        assert constant.tensor.tolist() == [0.0 if replaced else 1.0] * 3


def test_what_stays_is_the_tensor_itself() -> None:
    spares, tensor = Spares(), torch.zeros(3)
    backward, (constant,) = loss_of(tensor)
    spares.take(backward)
    spares.end_iteration()
    spares.end_iteration()
    assert constant.tensor is tensor


def test_there_is_room_for_so_many_and_one_that_is_overwritten_already_is_lost() -> None:
    spares, late = Spares(), torch.zeros(3)
    many = [torch.zeros(MOST_BYTES // 4) for _ in range(ROOM // MOST_BYTES + 1)]
    backward, constants = loss_of(*many, late)
    late.add_(1)
    spares.take(backward)
    for tensor in many:
        tensor.add_(1)
    spares.settle()
    assert [constant.overwritten for constant in constants] == [False] * (len(many) - 1) + [True, True]
