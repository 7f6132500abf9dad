"""Treatments of the mode that a model is trained in, measured by what its norms and its dropouts do in the training passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import function_name
from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.determinism import DROPOUTS
from netdoctor.experiments.treatments.evaluation import MOVED, replay_all
from netdoctor.experiments.treatments.treatment import (
    Bench,
    Case,
    Maker,
    Measure,
    Treatment,
    as_trained,
    first_argument,
)

RARELY = 10.0  # % of the calls: in a small layer with a low rate all may be kept by chance


def train_mode(case: Case) -> Treatment:
    """Every module in training mode, on the captured steps that were taken in evaluation mode."""

    def apply(bench: Bench) -> None:
        bench.rewrite(lambda entry: replace(entry, modes=(True,) * len(entry.modes)))

    return Treatment(apply, both=_evaluated, measure=_measure(case.step))


def _evaluated(bench: Bench) -> None:
    found = [it for it in bench.iterations if any(not all(entry.modes) for entry in it.backwards[0].entries)]
    bench.iterations = found or bench.iterations


def _measure(step: TrainingStep) -> Measure | None:
    """By the running statistics, where they are behind as the training leaves them; else by the dropouts, where there are any."""
    bench = Bench(as_trained(step), step.iterations)
    _evaluated(bench)
    # A loss that is made with dropouts, or by the batch's own statistics, is higher by right: that is no harm.
    by = partial(Measure, witness=False, second=True)
    norms = by("what BatchNorm normalises lies off its running means, in deviations, by", behind, MOVED)
    drops = by("dropouts that drop nothing in a training pass", idle, RARELY, "%")
    if behind(bench) > MOVED:
        return norms
    return drops if idle(bench) >= 0 else norms if any(_norms(bench)) else None


# --- running statistics ----------------------------------------------------------------------------------------------


def behind(bench: Bench) -> float:
    """How far running means lie from the means of what comes in, over all captured batches, in running deviations.

    Of the median over its channels, that of the norm where it is largest. NaN where there is no norm.
    """
    norms = list(_norms(bench))
    running = {norm: _running(norm) for norm in norms}  # before the passes, which move them in training mode
    sums: dict[_BatchNorm, Tensor] = {}
    counts: Counter[_BatchNorm] = Counter()

    def note(norm: Any, given: Any) -> None:
        values = given[0].detach().transpose(0, 1).flatten(1).double()
        sums[norm] = sums.get(norm, 0.0) + values.sum(1)
        counts[norm] += values.shape[1]

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        replay_all(bench)
    finally:
        for handle in handles:
            handle.remove()
    off = [(sums[norm] / counts[norm] - running[norm][0]).abs() / running[norm][1] for norm in sums]
    return max((float(distance.median()) for distance in off), default=float("nan"))


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) that a norm keeps."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.detach().double(), (norm.running_var.detach().double() + norm.eps).sqrt()


def _norms(bench: Bench) -> Iterator[_BatchNorm]:
    children = (child for top in bench.sandbox.modules() for child in top.modules())
    return (c for c in children if isinstance(c, _BatchNorm) and c.running_mean is not None)


# --- dropouts --------------------------------------------------------------------------------------------------------


class _Drops(TorchFunctionMode):
    """Counts calls of dropouts that have something to drop, and those that give back what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.idle = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        if function_name(func) in DROPOUTS and rate > 0:
            self.calls += 1
            self.idle += bool(torch.equal(result, first_argument(args, kwargs)))
        return result


def idle(bench: Bench) -> float:
    """The percentage of calls of dropouts, over all captured batches, that drop nothing; NaN where there are no calls."""
    drops = _Drops()
    with drops:
        replay_all(bench)
    return 100 * drops.idle / drops.calls if drops.calls else float("nan")


TREATMENTS: dict[str, Maker] = {"train-mode": train_mode}
