"""Is a second derivative in the loss 0 because the net is made of straight pieces, and would a smooth net have one?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import function_name, plain
from netdoctor.capture.step import Copies, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward
from netdoctor.capture.tree import tensors
from netdoctor.checks.structure.second_derivatives import PIECEWISE, flat_derivatives
from netdoctor.checks.structure.zero_second_derivative import CURVATURE
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.recording import Arm, Recording

BATCHES = 3  # captured ones, in all of which it must be 0
# What makes a layer: `abs` and `clamp` may bound an input or a coefficient as well, and stay.
ACTIVATIONS = PIECEWISE - {"abs", "clamp", "clip", "clamp_min"}
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "silu": F.silu}


class Smooth(TorchFunctionMode):
    """Puts a smooth function in the place of every activation of straight pieces; None leaves all as it is.

    `derivatives` holds, per call of grad in order, (entries that are exactly 0, all entries, largest magnitude).
    """

    def __init__(self, smooth: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self._smooth = smooth
        self.derivatives: list[tuple[int, int, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = plain(function_name(func))
        if self._smooth is not None and name in ACTIVATIONS:
            return self._smooth(args[0] if args else kwargs["input"])
        result = func(*args, **kwargs)
        if name == "grad":
            made = [tensor.detach() for tensor in tensors(result)]
            zeros = sum(int((tensor == 0).sum()) for tensor in made)
            largest = max((float(tensor.abs().max()) for tensor in made if tensor.numel()), default=0.0)
            self.derivatives.append((zeros, sum(tensor.numel() for tensor in made), largest))
        return result


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "curvature/second"; none unless a second derivative of the captured step was 0 throughout.

    Facts, over the calls of grad that gave nothing but zeros in all of the first batches: `zeros` (the share of such entries, of
    the trained model: 1, or 0 where there is no such call) and `smooth` (their largest magnitude with tanh in place of the
    activations; 0 where it makes no difference).
    """
    if not flat_derivatives(recording) or step.lost or not step.iterations:
        return {}
    began = time.perf_counter()
    try:
        with quiet():
            own, other = (measured(step, smooth) for smooth in (None, SMOOTH["tanh"]))
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {CURVATURE: Arm(CURVATURE, np.empty(0), failure=why_it_failed(error))}
    flat = [n for n, (zeros, count, _) in enumerate(own) if zeros == count > 0]
    largest = max((other[n][2] for n in flat if n < len(other)), default=0.0)
    says = f"a second derivative is 0 everywhere; with tanh it is up to {largest:.3g}"
    facts: dict[str, float | str | bool] = {"zeros": float(bool(flat)), "smooth": largest, "says": says}
    facts["verdict"] = "failed" if flat and largest > 0 else "passed"
    return {CURVATURE: Arm(CURVATURE, np.empty(0), time.perf_counter() - began, facts)}


def measured(step: TrainingStep, smooth: Callable[[Tensor], Tensor] | None) -> list[tuple[int, int, float]]:
    """What `Smooth` notes of each call of grad, over the first batches of the model as it was trained."""
    backwards = [iteration.backwards[0] for iteration in step.iterations[:BATCHES]]
    return derivatives_of(Copies(step.modules, step.leaves), backwards, smooth)


def derivatives_of(
    copies: Copies, backwards: list[Backward], smooth: Callable[[Tensor], Tensor] | None = None
) -> list[tuple[int, int, float]]:
    """Per call of grad, in order: (entries that are exactly 0, all entries, largest magnitude), over several batches."""
    total: list[tuple[int, int, float]] = []
    for backward in backwards:
        refuse_overwritten(backward)
        watch = Smooth(smooth)
        with watch:
            Replay(copies).loss(backward)
        known = total or [(0, 0, 0.0)] * len(watch.derivatives)
        pairs = zip(known, watch.derivatives, strict=False)
        total = [(a[0] + b[0], a[1] + b[1], max(a[2], b[2])) for a, b in pairs]
    return total
