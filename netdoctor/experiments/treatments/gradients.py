"""The gradient of the weights in a captured step, as it is and with something changed: where no loss can be the witness."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from netdoctor.capture.step import Replay
from netdoctor.experiments.treatments.treatment import Bench

Gradients = list[Tensor]


def with_and_without(bench: Bench, apply: Callable[[Bench], None]) -> tuple[Gradients, Gradients]:
    """(as the copy is, with the change applied as well), of the first captured step."""
    own, other = _gradients(bench), Bench(bench.sandbox, bench.iterations)
    with other.stack:
        apply(other)
        return own, _gradients(other)


def apart(whole: Gradients, other: Gradients) -> float:
    """How far another gradient is from the whole one, in percent of that one's norm; NaN where it is 0."""
    lost = sum(float((a - b).square().sum()) for a, b in zip(whole, other, strict=True))
    size = sum(float(a.square().sum()) for a in whole)
    return 100 * math.sqrt(lost / size) if size else math.nan


def _gradients(bench: Bench) -> Gradients:
    loss = Replay(bench.sandbox.copies).loss(bench.iterations[0].backwards[0], bench.sandbox.edit)
    parameters = bench.sandbox.trainable()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True)]
