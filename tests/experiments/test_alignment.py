"""Targets on a grid that are turned against their inputs: which way round fits, and what is won by it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep, preserved_random_state
from netdoctor.checks.data.turned import ASSIGNED, SHUFFLED, TRUE, TURNED, end
from netdoctor.experiments.alignment import trials
from netdoctor.experiments.dense import dense_of
from netdoctor.experiments.grids import AS_IT_IS, TURNS, Grid
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.tail import split
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import Loss, fit

SIZE, COUNT = 12, 640


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and masks of what is bright in them, (samples, 1, SIZE, SIZE)."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    x, y = torch.rand(2, COUNT, 1, 1) * (SIZE - 4) + 2
    masks = (((rows - y) ** 2 + (columns - x) ** 2) < 5).float()[:, None]
    return masks + 0.2 * torch.randn(COUNT, 1, SIZE, SIZE), masks


def conv(outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 3, padding=1))


def step_of(targets: torch.Tensor, loss: Loss = F.binary_cross_entropy_with_logits, outputs: int = 1) -> TrainingStep:
    images, _ = blobs()
    return fit(conv(outputs), loss, images, targets, lambda p: torch.optim.Adam(p, lr=2e-2), steps=40, size=16)


def arms_of(step: TrainingStep, recording: Recording | None = None) -> dict[str, Arm]:
    arms = trials(recording or Recording(), step, Budget(60), lambda _: None)
    assert all(not arm.failure for arm in arms.values())
    return arms


def test_targets_that_lie_where_their_inputs_lie_cost_one_arm() -> None:
    arms = arms_of(step_of(blobs()[1]))
    assert set(arms) == {ASSIGNED}
    assert float(arms[ASSIGNED].facts["others"]) < 0.2


def test_targets_transposed_for_all_are_told() -> None:
    arms = arms_of(step_of(blobs()[1].transpose(-2, -1).contiguous()))
    assert arms[ASSIGNED].facts["common"] == "transposed"
    assert set(arms) == {ASSIGNED, TRUE, TURNED}
    assert end(arms[TURNED].losses) < 0.6 * end(arms[TRUE].losses)


def test_targets_flipped_by_themselves_are_told_from_choosing_alone() -> None:
    masks = blobs()[1]
    turned = torch.stack([torch.rot90(mask, number % 4, (-2, -1)) for number, mask in enumerate(masks)])
    arms = arms_of(step_of(turned))
    assert set(arms) == {ASSIGNED, TRUE, SHUFFLED}
    assert float(arms[ASSIGNED].facts["fits"]) < 0.9
    assert end(arms[ASSIGNED].losses) < 0.6 * min(end(arms[TRUE].losses), end(arms[SHUFFLED].losses))


def flat_classes(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.permute(0, 2, 3, 1).reshape(-1, 2), target.reshape(-1))


def by_hand(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    wrong = ((out - target) ** 2).flatten(1).mean(1)
    return wrong[wrong > -1].mean()  # a mask by values, which no vmap runs


@pytest.mark.parametrize(("loss", "outputs"), [(flat_classes, 2), (by_hand, 1)])
def test_losses_that_flatten_the_grid_or_ask_for_values(loss: Loss, outputs: int) -> None:
    masks = blobs()[1].flip(-2)
    target = masks[:, 0].long() if outputs == 2 else masks
    arms = arms_of(step_of(target, loss, outputs))
    assert arms[ASSIGNED].facts["common"] == "mirrored upside down"


def test_no_arm_for_an_autoencoder_a_label_or_what_is_learned() -> None:
    images, masks = blobs()
    assert arms_of(step_of(images, F.mse_loss)) == {}
    labels = step_of(masks.mean((1, 2, 3)), lambda out, y: F.mse_loss(out.mean((1, 2, 3)), y))
    assert arms_of(labels) == {}
    learned = Recording()
    learned.arms["final/evaluation"] = Arm("final/evaluation", np.ones(1), facts={"left": 0.29})
    assert arms_of(step_of(masks.flip(-1)), learned) == {}


def test_the_losses_of_samples_add_up_to_that_of_the_batch() -> None:
    step = step_of(blobs()[1])
    copies, backward = step.copies(), step.iterations[0].backwards[0]
    dense = dense_of(backward, copies)
    tail = split(backward)
    assert dense is not None
    assert tail is not None
    assert len(tail.head) == 1
    outputs = (torch.randn(16, 1, SIZE, SIZE),)
    with preserved_random_state():
        each = dense.losses(copies, outputs, dense.held)
        (whole,) = dense.run(copies, outputs, dense.held)
    assert each.shape == (16,)
    assert torch.allclose(each.mean(), whole, rtol=1e-5)


def test_the_weights_of_the_script_stay_as_they_are() -> None:
    step = step_of(blobs()[1].flip(-1))
    before = [p.clone() for p in step.modules[0].parameters()]
    arms_of(step)
    assert all(torch.equal(old, new) for old, new in zip(before, step.modules[0].parameters(), strict=True))


def test_the_ways_round_differ_and_leave_a_square_grid_its_shape() -> None:
    picture = torch.arange(16.0).reshape(1, 4, 4)
    made = [turn.of(picture, 1, 2) for turn in TURNS.values()]
    assert torch.equal(made[0], picture)
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(made, 2))
    assert torch.equal(TURNS["turned by 90° to the right"].of(picture, 1, 2), torch.rot90(picture, -1, (1, 2)))
    assert torch.equal(TURNS["turned by 90° to the left"].of(picture, 1, 2), torch.rot90(picture, 1, (1, 2)))
    assert len(Grid(1, 4, 6).turns()) == 4


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 3, 4, 6), (2, 4, 6, 3), (2, 24), (2, 72), (48,), (48, 3)])
def test_a_grid_is_turned_in_any_layout(shape: tuple[int, ...]) -> None:
    grid, tensor = Grid(2, 4, 6), torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    turned = grid.turned(tensor, [AS_IT_IS, TURNS["mirrored left to right"]])
    assert turned.shape == tensor.shape
    half = tensor.numel() // 2
    assert torch.equal(turned.flatten()[:half], tensor.flatten()[:half])
    channels_last = shape in {(2, 4, 6, 3), (48, 3)}
    second = tensor.flatten()[half:].reshape(4, 6, -1) if channels_last else tensor.flatten()[half:].reshape(-1, 4, 6)
    assert torch.equal(turned.flatten()[half:], second.flip(1 if channels_last else 2).flatten())


@pytest.mark.parametrize("shape", [(2,), (3, 4, 6), (2, 5, 7), (), (47,)])
def test_what_has_no_grid_stays(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape)
    assert Grid(2, 4, 6).turned(tensor, [TURNS["turned by 180°"]] * 2) is tensor
