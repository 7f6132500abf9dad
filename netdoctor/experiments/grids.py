"""Tensors with a row per sample that hold a value per cell of a grid, in whatever layout, and the ways to turn the grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 4  # cells along a side: of fewer there is no telling which way round they lie


@dataclass(frozen=True, slots=True)
class Turn:
    """Rows and columns exchanged, then the rows, then the columns in reverse. `name` says what it does to a target."""

    name: str
    exchanged: bool = False
    rows: bool = False
    columns: bool = False

    def of(self, tensor: Tensor, rows: int, columns: int) -> Tensor:
        """The tensor, turned in these two dimensions."""
        turned = tensor.transpose(rows, columns) if self.exchanged else tensor
        reversed_ = [axis for axis, really in ((rows, self.rows), (columns, self.columns)) if really]
        return turned.flip(reversed_) if reversed_ else turned


AS_IT_IS = Turn("as it is")
_FLIPS = (
    Turn("mirrored left to right", columns=True),
    Turn("mirrored upside down", rows=True),
    Turn("turned by 180°", rows=True, columns=True),
)
_EXCHANGES = (
    Turn("transposed", exchanged=True),
    Turn("turned by 90° to the right", exchanged=True, columns=True),
    Turn("turned by 90° to the left", exchanged=True, rows=True),
    Turn("transposed along the other diagonal", exchanged=True, rows=True, columns=True),
)
TURNS = {turn.name: turn for turn in (AS_IT_IS, *_FLIPS, *_EXCHANGES)}


@dataclass(frozen=True, slots=True)
class Grid:
    """`height` x `width` cells for each of `size` samples."""

    size: int
    height: int
    width: int

    def turns(self) -> tuple[Turn, ...]:
        """The ways to turn it that leave its shape as it is, that of doing nothing first."""
        return (AS_IT_IS, *_FLIPS, *(_EXCHANGES if self.height == self.width else ()))

    def layout(self, tensor: Tensor) -> tuple[tuple[int, ...], int] | None:
        """(shape to see a tensor in, dimension of the rows there; that of the columns comes next); None where it has no grid.

        The dimensions may stand at the end, before the channels, or be flattened together with those around them.
        """
        shape, cells = tuple(tensor.shape), self.height * self.width
        if not shape or tensor.layout is not torch.strided:
            return None
        if shape[0] == self.size:
            sides = [at for at in range(1, len(shape) - 1) if shape[at : at + 2] == (self.height, self.width)]
            if sides:
                return shape, sides[-1]
            flat = [at for at in range(1, len(shape)) if shape[at] % cells == 0]
            if flat:  # (samples, cells), or (samples, channels and cells together)
                at = flat[-1]
                parts = (shape[at] // cells, self.height, self.width)
                return (*shape[:at], *parts, *shape[at + 1 :]), at + 1
        if shape[0] == self.size * cells:
            return (self.size, self.height, self.width, *shape[1:]), 1
        return None

    def turned(self, tensor: Tensor, turns: list[Turn]) -> Tensor:
        """The tensor with the grid of each sample turned; `turns` holds one for each sample."""
        layout = self.layout(tensor)
        if layout is None or all(turn == AS_IT_IS for turn in turns):
            return tensor
        shape, rows = layout
        seen, made = tensor.reshape(shape), tensor.reshape(shape).clone()
        for turn in dict.fromkeys(turns):
            where = torch.tensor([turn == other for other in turns], device=tensor.device)
            made[where] = turn.of(seen[where], rows, rows + 1)
        return made.reshape(tensor.shape)


def grids(outputs: list[Tensor], inputs: list[Tensor]) -> Iterator[Grid]:
    """The grids that outputs have in common with inputs, up to a factor that is the same for both sides."""
    sides = {pair for given in inputs for pair in _sides(given)}
    for output in outputs:
        sizes = {given.shape[0] for given in inputs if given.dim()}
        for height, width in _sides(output) if output.dim() and output.shape[0] in sizes else ():
            if any(height * w == width * h and _factor(height, h) for h, w in sides):
                yield Grid(output.shape[0], height, width)


def _sides(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Height and width, at the end of the shape or before the channels."""
    shape = tuple(tensor.shape)
    places = (-2, 1) if len(shape) > 3 else (-2,) if len(shape) == 3 else ()
    for height, width in ((shape[at], shape[at + 1]) for at in places):
        if min(height, width) >= LEAST:
            yield height, width


def _factor(one: int, other: int) -> bool:
    return one % other == 0 or other % one == 0
