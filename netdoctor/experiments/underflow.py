"""How much of a half-precision gradient is rounded to zero: the same backward pass again, with the loss scaled up."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm, Recording

SCALE = 2.0**12  # times the loss: float16 then reaches down from 6e-8 to 1.5e-11; larger gradients overflow sooner
NAME = "underflow/scaled loss"


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "underflow/scaled loss", where the captured step computes in float16 and no loss scaler is in use.

    Facts: `lost`, of the entries of all gradients that are not zero with the scaled loss, the share that is zero without;
    `worst`, the largest such share of one parameter, `entries` and `finite`.
    """
    graph = recording.graph
    half = graph is not None and any(value.dtype == "float16" and value.requires_grad for value in graph.values)
    if not half or recording.facts.get("loss_scaler") or recording.counts.get("scaler-skip") or not step.iterations:
        return {}
    began = time.perf_counter()
    backward = step.iterations[0].backwards[0]
    try:
        with quiet():
            plain, scaled = _gradients(step, backward, 1.0), _gradients(step, backward, SCALE)
    except CannotReplayError as error:
        return {NAME: Arm(NAME, np.empty(0), failure=str(error))}
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        return {NAME: Arm(NAME, np.empty(0), failure=why_it_failed(error))}
    return {NAME: Arm(NAME, np.empty(0), time.perf_counter() - began, _facts(plain, scaled))}


def _gradients(step: TrainingStep, backward: Backward, scale: float) -> list[Tensor | None]:
    """The gradient of every trainable parameter, in the copy's order."""
    refuse_overwritten(backward)
    sandbox = Sandbox(step)
    (Replay(sandbox.copies).loss(backward) * scale).backward()
    return [p.grad for p in sandbox.trainable()]


def _facts(plain: list[Tensor | None], scaled: list[Tensor | None]) -> dict[str, float | str | bool]:
    lost, entries, worst, finite = 0, 0, 0.0, True
    for small, large in zip(plain, scaled, strict=True):
        if small is None or large is None or large.layout is not torch.strided:
            continue
        wanted = large != 0
        gone, count = int((wanted & (small == 0)).sum()), int(wanted.sum())
        finite = finite and bool(torch.isfinite(large).all())
        lost, entries = lost + gone, entries + count
        worst = max(worst, gone / count if count else 0.0)
    share = lost / max(1, entries)
    says = f"{100 * share:.0f} % of the gradient is zero, and is not with the loss times {SCALE:g}"
    return {"lost": share, "worst": worst, "entries": float(entries), "finite": finite, "says": says}
