"""Patches: found by what cuts them, permuted as the model reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netdoctor.experiments.patches import grid, patch_size, permuted

IMAGES = torch.arange(2 * 3 * 8 * 4.0).reshape(2, 3, 8, 4)


@pytest.mark.parametrize(
    ("module", "given", "size"),
    [
        (nn.Conv2d(3, 8, 2, stride=2), IMAGES, (2, 2)),
        (nn.Sequential(nn.Dropout(), nn.Linear(3 * 16, 8)), IMAGES, (4, 4)),
        (nn.Conv1d(3, 8, 4, stride=4), torch.zeros(2, 3, 16), (4,)),
        (nn.Conv2d(3, 8, 3, padding=1), IMAGES, None),  # an ordinary convolution
        (nn.Conv2d(3, 8, 2, stride=2, padding=1), IMAGES, None),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 2, stride=2)), IMAGES, None),
        (nn.Conv2d(3, 8, 3, stride=3), IMAGES, None),  # does not go into the sizes
        (nn.Linear(3 * 32, 8), IMAGES, None),  # the image as a whole
        (nn.Conv2d(3, 8, 2, stride=2), IMAGES.long(), None),
    ],
)
def test_the_size_of_a_patch(module: nn.Module, given: torch.Tensor, size: tuple[int, ...] | None) -> None:
    assert patch_size(module, given) == size


@pytest.mark.parametrize("given", [IMAGES, torch.randn(2, 3, 16)])
def test_a_patch_embedding_sees_the_same_patches_in_another_order(given: torch.Tensor) -> None:
    kind, patch = (nn.Conv2d, (2, 2)) if given.dim() == 4 else (nn.Conv1d, (4,))
    embed = kind(3, 5, patch, stride=patch)
    cells = grid(given, patch)
    order = torch.randperm(torch.tensor(cells).prod().item(), generator=torch.Generator().manual_seed(0))
    before, after = (embed(x).flatten(2) for x in (given, permuted(given, patch, order)))
    torch.testing.assert_close(after, before[:, :, order])
