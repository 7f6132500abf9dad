"""How the gradient fares on its way back through time, in recurrent modules that run a whole sequence in one call."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from torch import Tensor, nn

from netdoctor.capture.step import Replay, TrainingStep, refuse_overwritten
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.signal.along_time import TIME
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.recording import Arm, Recording

SHORTEST = 8  # positions: over fewer there is no trend


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "time/PATH", one for each RNN, LSTM or GRU that is given padded sequences, where training is hurt.

    The inputs of a copy's modules ask for a gradient of their own: at each position it is that of the state there, times the
    input weights. Facts: `decades`, log10 of its rms at the first position over that at the last one, and `positions`.
    """
    if harm(recording).state not in {State.HURT, State.SLOW} or step.lost or not step.iterations:
        return {}
    began, given = time.perf_counter(), dict[str, Tensor]()
    try:
        with quiet():
            _run(step, given)
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {f"{TIME}all": Arm(f"{TIME}all", np.empty(0), failure=why_it_failed(error))} if given else {}
    arms = {}
    for path, x in given.items():
        decades, positions = _decades(x)
        if math.isfinite(decades):
            facts: dict[str, float | str | bool] = {"decades": decades, "positions": positions}
            facts["says"] = (
                f"the gradient at the first of {positions} positions is 1e{decades:+.0f} times that at the last"
            )
            arms[TIME + path] = Arm(TIME + path, np.empty(0), time.perf_counter() - began, facts)
    return arms


def _run(step: TrainingStep, given: dict[str, Tensor]) -> None:
    """One backward pass of a copy, from the start of the training; `given` gets the inputs of its recurrent modules."""
    copies = step.copies()
    for top in step.modules:
        copied = copies.of(top)
        for path, module in copied.named_modules() if isinstance(copied, nn.Module) else ():
            if isinstance(module, nn.RNNBase):
                module.register_forward_pre_hook(_asking(path, module, given))
    backward = step.iterations[0].backwards[0]
    refuse_overwritten(backward)
    Replay(copies).loss(backward).backward()


def _asking(path: str, module: nn.RNNBase, given: dict[str, Tensor]) -> Any:
    """A hook that gives a module a copy of its input, which keeps its gradient; time is brought to the first dimension there."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> Any:
        if path in given or not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None
        timed = args[0].detach().transpose(0, 1) if module.batch_first else args[0].detach()
        given[path] = timed.clone().requires_grad_()
        return (given[path].transpose(0, 1) if module.batch_first else given[path], *args[1:])

    return hook


def _decades(x: Tensor) -> tuple[float, int]:
    """(decades of the gradient at the first position over the last one, positions); NaN where that cannot be told."""
    if x.grad is None or len(x) < SHORTEST:
        return math.nan, len(x)
    sizes = x.grad.double().square().mean(dim=(1, 2)).sqrt()
    first, last = float(sizes[0]), float(sizes[-1])
    if not (math.isfinite(first) and last > 0):
        return math.nan, len(x)
    return math.log10(max(first, 1e-45) / last), len(x)
