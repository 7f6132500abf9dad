"""Would the training get further if its half-precision weights were kept in float32 between the steps?"""

from __future__ import annotations

import linecache
import math
import re
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.numerics.rounding import CONTROL, MASTER
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm, Recording

STEPS = 160  # one step loses little; weights that keep all of them have moved a good way by then
HALF = frozenset({torch.float16, torch.bfloat16})
_TYPE = r"\b(bfloat16|float16|half)\b"
Facts = dict[str, float | str | bool]


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "rounding/as it is" and "rounding/float32 between the steps", where an optimizer trains half-precision weights.

    Both start from the weights of before the first step, on the captured batches: first at the rates of their steps, then at
    the highest of the run. All is computed as in the script; but the second one's optimizers step on float32 copies of
    the weights, of which the half-precision ones are rounded anew, so that what is too small for one step adds up.
    Facts: `moved`, the rms of what all weights have moved from the start, in their own unit; and `file`, `line` and
    `text` of where the weights became half, if that is found.
    """
    if recording.origin is not None or step.lost or not step.iterations or not _half(step):
        return {}
    control = _arm(CONTROL, recording, step, budget.share(budget.left / 2), STEPS)
    if control.failure:
        return {CONTROL: control}
    return {CONTROL: control, MASTER: _arm(MASTER, recording, step, budget, len(control.losses))}


def _half(step: TrainingStep) -> bool:
    return any(p.dtype in HALF for start in step.optimizers for group in start.parameters for p in group)


def _arm(name: str, recording: Recording, step: TrainingStep, budget: Budget, steps: int) -> Arm:
    began, losses = time.perf_counter(), list[float]()
    try:
        with quiet():
            sandbox = Sandbox(step)
            held = [p for p in sandbox.trainable() if p.dtype in HALF]
            before = [p.detach().clone() for p in held]
            if name == MASTER:
                for optimizer in sandbox.optimizers:
                    step_in_float32(optimizer)
            while len(losses) < steps and budget.left > 0 and math.isfinite(sum(losses[-1:])):
                count = len(losses)
                if count == len(step.iterations):
                    at_the_highest_rate(sandbox, recording)
                first_pass = count < len(step.iterations)
                losses.append(sandbox.iterate(step.iterations[count % len(step.iterations)], first_pass))
            moved = _moved(held, before)
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    facts: Facts = {"moved": moved, **_place(recording)}
    facts["says"] = f"loss {losses[0]:.3g} → {losses[-1]:.3g} in {len(losses)} steps"
    return Arm(name, np.asarray(losses), time.perf_counter() - began, facts)


def step_in_float32(optimizer: Optimizer) -> None:
    """Make an optimizer of half-precision parameters step on float32 copies of them, which it keeps."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for group in optimizer.param_groups:
        for number, parameter in enumerate(group["params"]):
            if parameter.dtype in HALF:
                master = parameter.detach().float().requires_grad_()
                pairs.append((parameter, master))
                group["params"][number] = master
                if parameter in optimizer.state:
                    state = optimizer.state.pop(parameter)
                    optimizer.state[master] = {key: _float32(value) for key, value in state.items()}

    def before(*_: Any) -> None:
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()

    def after(*_: Any) -> None:
        with torch.no_grad():
            for parameter, master in pairs:
                parameter.copy_(master)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def at_the_highest_rate(sandbox: Sandbox, recording: Recording) -> None:
    """From the rates of the last captured step to the highest of the run: a warm-up may be longer than what was captured."""
    rates = recording.scalars.get("lr")
    now = float(sandbox.optimizers[0].param_groups[0].get("lr", math.nan))
    factor = float(rates.values.max()) / now if rates is not None and rates.values.size and now > 0 else 1.0
    for group in (group for optimizer in sandbox.optimizers for group in optimizer.param_groups):
        if "lr" in group and math.isfinite(factor):
            group["lr"] = group["lr"] * factor


@torch.no_grad()
def _moved(held: list[Tensor], before: list[Tensor]) -> float:
    square = sum(float((now.float() - was.float()).square().sum()) for now, was in zip(held, before, strict=True))
    return math.sqrt(square / max(1, sum(p.numel() for p in held)))


def _place(recording: Recording) -> Facts:
    """The last line before the optimizer is built that makes something half, in the file where that is."""
    source = next((optimizer.source for optimizer in recording.optimizers if optimizer.source is not None), None)
    lines = linecache.getlines(source.file)[: source.line] if source is not None else []
    names = {match[1] for text in lines if (match := re.match(rf"\s*(\w+)\s*(?::[^=]+)?=\s*torch\.{_TYPE}", text))}
    kinds = "|".join((_TYPE, *(rf"\b{re.escape(name)}\b" for name in sorted(names))))
    makes = re.compile(rf"\.(to|type)\(.*({kinds})|\.(bfloat16|half)\(\)|set_default_dtype\(.*({kinds})")
    for number in range(len(lines), 0, -1):
        text = lines[number - 1].partition("#")[0]
        if source is not None and makes.search(text) and "autocast" not in text:
            return {"file": source.file, "line": float(number), "text": text.strip()}
    return {}
