"""How large a batch would the gradient need? Its noise from batch to batch, beside what the batches agree on."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.tiny_batch import batch_size
from netdoctor.recording import Arm, Recording

NAME = "noise/gradients"
BATCHES, LEAST = 12, 4  # captured batches that are compared: the most, and the least that say anything


def measure(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "noise/gradients": the simple noise scale at the weights of the first step.

    Facts: "scale" (samples; batches well under it are mostly noise, larger ones than it hardly help; infinite where the
    batches agree on nothing), "batch" (samples per batch), "batches". Formula (McCandlish et al. 2018, An Empirical
    Model of Large-Batch Training, appendix A.1), with b samples per batch, B = K b in all K of them, g the gradients:
    |G|² = (B |g_B|² - b |g_b|²) / (B - b), S = (|g_b|² - |g_B|²) / (1/b - 1/B), scale = S / |G|².
    """
    began = time.perf_counter()
    try:
        with quiet():
            facts = _facts(step, budget)
    except Exception as error:  # the user's code failed on the copy: an answer, not a fault
        text = why_it_failed(error)
        return {NAME: Arm(NAME, np.empty(0), failure=text[:200])}
    return {NAME: Arm(NAME, np.empty(0), time.perf_counter() - began, facts)}


def _facts(step: TrainingStep, budget: Budget) -> dict[str, float | str | bool]:
    size = batch_size(step.iterations[0], 0)
    same = [iteration for iteration in step.iterations if batch_size(iteration, 0) == size][:BATCHES]
    squares, total, number = 0.0, None, 0
    for iteration in same if size > 0 else ():
        if budget.left <= 0:
            break
        gradient = _gradient(step, iteration)
        squares += float(gradient.square().sum())
        total, number = gradient if total is None else total + gradient, number + 1
    if total is None or number < LEAST:
        raise CannotReplayError(f"{number} batches of one size were captured, {LEAST} are needed")
    scale = noise_scale(squares / number, float((total / number).square().sum()), size, number)
    says = f"the gradient's noise scale is {scale:.3g} samples; a batch holds {size}"
    says = says if math.isfinite(scale) else "the gradient is noise alone"
    return {"scale": scale, "batch": float(size), "batches": float(number), "says": says}


def _gradient(step: TrainingStep, iteration: Iteration) -> Tensor:
    """The gradient of a captured iteration's first loss at the weights of the first step, in one row."""
    sandbox = Sandbox(step)
    refuse_overwritten(iteration.backwards[0])
    Replay(sandbox.copies).loss(iteration.backwards[0]).backward()
    found = [p.grad for p in sandbox.trainable() if p.grad is not None and p.grad.layout is torch.strided]
    if not found:
        raise CannotReplayError("no weight gets a gradient")
    return torch.cat([gradient.double().flatten() for gradient in found])


def noise_scale(small: float, big: float, size: int, number: int) -> float:
    """The noise scale in samples from the mean squared norm of single batches and that of their mean; never negative."""
    whole = size * number
    signal = (whole * big - size * small) / (whole - size)
    noise = (small - big) / (1 / size - 1 / whole)
    return max(0.0, noise / signal) if signal > 0 else math.inf
