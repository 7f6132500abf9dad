"""Does a sample's output change with what else is in its batch, in the modes that the modules are in?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from netdoctor.capture.step import Copies, Iteration, Replay
from netdoctor.capture.tape import Entry
from netdoctor.capture.tree import tensors
from netdoctor.experiments.determinism import difference, seeded
from netdoctor.experiments.tiny_batch import batch_size, sample


def change(copies: Copies, iteration: Iteration, seeds: tuple[int, int]) -> float:
    """By which share of their magnitude the outputs of the first half of a batch differ between two passes.

    In the second pass the other half is a copy of the first. With two equal seeds only the company differs; with
    different ones so do the dropouts. Modules run in the modes that the entries have. NaN where nothing can be compared.
    """
    size = batch_size(iteration, 0)
    half = size // 2
    if half < 1:
        return math.nan
    twice = (tuple(range(half)) * 3)[:size]
    one = list(outputs(copies, iteration, seeds[0]))
    other = list(outputs(copies, sample(iteration, size, 0, twice), seeds[1]))
    pairs = [(a[:half], b[:half]) for a, b in zip(one, other, strict=False) if a.shape == b.shape and len(a) == size]
    return difference([a for a, _ in pairs], [b for _, b in pairs]) if pairs else math.nan


def outputs(copies: Copies, iteration: Iteration, seed: int) -> Iterator[Tensor]:
    """What the models give for the first loss, without gradient; what the loop makes of it is left out."""
    replay, made = Replay(copies), set[int]()
    for entry in iteration.backwards[0].entries:
        if entry.module is None or not made.issuperset(entry.inputs()):
            continue
        made.update(entry.outputs)
        replay.run_entry(_ungraded(entry, seed))
        found = tensors([replay.value(number) for number in entry.outputs])
        yield from (t.detach().double() for t in found if t.is_floating_point() and t.dim() > 0)


def _ungraded(entry: Entry, seed: int) -> Entry:
    context = seeded(entry, seed)
    return replace(entry, context=context and replace(context, grad=False))
