"""Targets with a value per cell of a grid: turned, permuted, and the loss of each sample with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Replay
from netdoctor.capture.tape import Backward, Constant, Entry, Slot
from netdoctor.experiments.grids import AS_IT_IS, Grid, Turn, grids
from netdoctor.experiments.tail import Rerun, Tail, split
from netdoctor.experiments.tiny_batch import resized, rewrite
from netdoctor.experiments.usage import constants

Values = dict[int, Tensor]  # by slot


class Dense:
    """The end of one backward call, whose constants hold values on a grid.

    `held` are the constants with a row per sample, under slots of their own; `dense` those of them that have the grid.
    """

    def __init__(self, tail: Tail, grid: Grid) -> None:
        self.tail, self.grid = tail, grid
        found = [c.tensor for c in tail.constants() if _has_rows(c.tensor, grid.size)]
        self._numbers = {id(tensor): -2 - place for place, tensor in enumerate(found)}  # that no tape gives
        self.held: Values = {self._numbers[id(tensor)]: tensor.detach() for tensor in found}
        self.dense = {number for number, tensor in self.held.items() if grid.layout(tensor) is not None}
        self._whole = [self._opened(entry, grid.size) for entry in tail.entries]
        self._single = [self._opened(entry, 1) for entry in tail.entries]
        self._batched = True  # until an operation refuses it

    def _opened(self, entry: Entry, size: int) -> Entry:
        """The entry for batches of another size, with slots in place of the constants with a row per sample."""

        def opened(constant: Constant) -> Any:
            number = self._numbers.get(id(constant.tensor))
            return constant if number is None else Slot(number)

        if size == self.grid.size:
            return replace(entry, args=rewrite(entry.args, opened), kwargs=rewrite(entry.kwargs, opened))
        return resized(entry, opened, self.grid.size, size)

    def position(self) -> tuple[str, int]:
        """The user's line that first compares with one of the dense targets."""
        reads = (e for e in self._whole if any(isinstance(i, Slot) and i.number in self.dense for i in e.meanings()))
        return next((entry.position for entry in reads), ("", 0))

    def turned(self, turns: list[Turn], held: Values | None = None) -> Values:
        """What is held, with the dense ones turned: `turns` holds one for each sample."""
        held = self.held if held is None else held
        return {n: self.grid.turned(t, turns) if n in self.dense else t for n, t in held.items()}

    def permuted(self, seed: int) -> Values:
        """What is held, with the samples in another order."""
        order = torch.randperm(self.grid.size, generator=torch.Generator().manual_seed(seed))
        return {n: _rows(t, self.grid.size)[order.to(t.device)].reshape(t.shape) for n, t in self.held.items()}

    def run(self, copies: Copies, outputs: tuple[Tensor, ...], held: Values) -> tuple[Tensor, ...]:
        """The losses of the whole batch, from the outputs of the models."""
        values = dict(zip(self.tail.given, outputs, strict=True)) | held
        return Rerun(copies, values).results(self._whole, self.tail.losses)

    def losses(self, copies: Copies, outputs: tuple[Tensor, ...], held: Values) -> Tensor:
        """The loss of each sample by itself, (samples,), without a graph."""
        size, values = self.grid.size, dict(zip(self.tail.given, outputs, strict=True)) | held
        rows = {number: _rows(tensor, size) for number, tensor in values.items() if _has_rows(tensor, size)}

        def one(*parts: Tensor) -> Tensor:
            given = values | dict(zip(rows, parts, strict=True))
            return torch.stack([r.sum() for r in Rerun(copies, given).results(self._single, self.tail.losses)]).sum()

        with torch.no_grad():
            if self._batched:
                try:
                    return torch.func.vmap(one)(*rows.values())
                except Exception:  # what asks for values, or draws random numbers
                    self._batched = False
            return torch.stack([one(*(row[at] for row in rows.values())) for at in range(size)])


def dense_of(backward: Backward, copies: Copies) -> Dense | None:
    """The dense targets of a backward call; None where there are none, or the model is given them as they are."""
    tail = split(backward)
    if tail is None:
        return None
    inputs, replay = [c.tensor for c in constants(backward)], Replay(copies)
    with torch.no_grad():
        for entry in tail.head:
            replay.run_entry(entry)
    for grid in grids([replay.value(number) for number in tail.given], inputs):
        found = Dense(tail, grid)
        if found.dense and not any(_same(found.held[number], given) for number in found.dense for given in inputs):
            return found
    return None


def _has_rows(tensor: Tensor, size: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] > 0 and tensor.shape[0] % size == 0


def _rows(tensor: Tensor, size: int) -> Tensor:
    """(samples, rows of each, ...)."""
    return tensor.reshape(size, tensor.shape[0] // size, *tensor.shape[1:])


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other)))


class Chooser:
    """The end of a backward call, with the targets of each sample turned to where its loss is lowest at present.

    `others` tells which samples fit clearly better turned; `fits`, (ways, samples), which ways fit each about best.
    """

    def __init__(self, dense: Dense, copies: Copies, held: Values | None, clear: float, alike: float) -> None:
        self.dense, self._copies, self._held = dense, copies, held
        self._clear, self._alike = clear, alike
        size = dense.grid.size
        self.seen = False  # whether it ran
        self.others = torch.zeros(size, dtype=torch.bool)
        self.fits = torch.zeros(len(dense.grid.turns()), size, dtype=torch.bool)

    def __call__(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        self.seen = True
        turns = self._choose(tuple(output.detach().clone() for output in outputs))
        return self.dense.run(self._copies, outputs, self.dense.turned(turns, self._held))

    def _choose(self, outputs: tuple[Tensor, ...]) -> list[Turn]:
        """A way round per sample: as it is, unless another one is better. What cannot be told (NaN) stays as it is."""
        ways, size = self.dense.grid.turns(), self.dense.grid.size
        each = [self.dense.turned([way] * size, self._held) for way in ways]
        table = torch.stack([self.dense.losses(self._copies, outputs, held) for held in each]).double().cpu()
        best, place = torch.where(table.isnan(), torch.inf, table).min(0)
        self.others = table[0] - best > self._clear * table[0].abs()
        self.fits = table - best <= self._alike * (table.max(0).values - best)
        better = (best < table[0]).tolist()
        return [ways[at] if really else AS_IT_IS for at, really in zip(place.tolist(), better, strict=True)]
