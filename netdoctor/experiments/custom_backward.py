"""Do the gradients of custom autograd functions agree with finite differences of their own forward pass?"""

from __future__ import annotations

import inspect
import linecache
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.patching import FUNCTIONS, Patches, next_apply
from netdoctor.capture.source import user_position
from netdoctor.capture.step import Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tree import substitute, tensors
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.recording import Arm, Recording

PREFIX = "custom backward/"
STEP = 1e-5  # of the difference quotient in double precision: truncation and rounding are both about 1e-9 of the value
DIRECTIONS = 4  # random ones: a wrong term is orthogonal to all of them with probability 0
FLAT = 1e-6  # of the gradient: the forward pass does not change at all
MAX_NUMBERS = 1 << 16  # of an input


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a custom function, with its arguments in double precision."""

    cls: type[torch.autograd.Function]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    position: tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Slopes:
    """Along one random direction of one input: by finite differences, by half of the step, and by backward."""

    difference: float
    finer: float
    backward: float

    @property
    def smooth(self) -> bool:
        """Whether the two quotients agree, so that there is no kink or jump between."""
        return abs(self.difference - self.finer) <= 1e-3 * max(abs(self.difference), abs(self.finer), 1e-12)

    @property
    def off(self) -> float:
        """The difference of the gradient from the quotient, relative to the larger."""
        scale = max(abs(self.finer), abs(self.backward))
        return abs(self.backward - self.finer) / scale if scale > 0 else 0.0


def compare(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """One arm "custom backward/<name>" per `autograd.Function` of the user's own in the first captured step.

    Facts: "off" (the median relative error over random directions of the input that fits worst), "passes" (all that is
    off is a gradient where the forward pass is flat, as in rounding and clipping), "identity" (it gives back what it is
    given), "stops" (backward gives None for that input), "silent" (it gives an input no gradient at all), "input",
    "factor" (how much too large the gradient is, where that is the same along all directions), "file", "line", and
    "backward_file", "backward_line" of its backward. No arm where there is no such function.
    """
    arms: dict[str, Arm] = {}
    try:
        with quiet():
            calls = _calls(step)
            for name, call in calls.items():
                if budget.left <= 0:
                    break
                arms[PREFIX + name] = _arm(PREFIX + name, call)
    except Exception as error:
        return {PREFIX: Arm(PREFIX, np.empty(0), failure=why_it_failed(error))} if arms else {}
    return arms


def error_of(step: TrainingStep, name: str) -> float:
    """How far off the gradient of the function of this name is, relative; NaN where the first step does not call it."""
    call = _calls(step).get(name)
    return math.nan if call is None else float(_judge(call)["off"])


def _calls(step: TrainingStep) -> dict[str, _Call]:
    """The first call of each custom function behind the first loss."""
    found: dict[str, _Call] = {}
    patches, replay = Patches(), Replay(step.copies())

    def watch(original: Any) -> Any:
        inner = next_apply(original)

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if not cls.__module__.startswith("torch.") and cls.__name__ not in found:
                positional, named = substitute((args, kwargs), _doubled)
                position = user_position(Replay.run_entry.__code__)
                at = position if position[0] or replay.entry is None else replay.entry.position
                found[cls.__name__] = _Call(cls, positional, named, at)
            return inner(cls, *args, **kwargs)

        return classmethod(apply)

    backward = step.iterations[0].backwards[0]
    refuse_overwritten(backward)
    patches.wrap(FUNCTIONS, "apply", watch)  # also where the user kept `apply` under a name of their own
    try:
        replay.loss(backward)
    finally:
        patches.remove()
    return found


def _doubled(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    wants = tensor.requires_grad and tensor.is_floating_point()
    return copied.double().requires_grad_() if wants else copied.double() if copied.is_floating_point() else copied


def _arm(name: str, call: _Call) -> Arm:
    began = time.perf_counter()
    file, line = call.position
    facts: dict[str, float | str | bool] = {"file": file, "line": float(line)}
    facts["text"] = linecache.getline(file, line).strip() if file else ""
    try:
        if not _repeats(call):
            return Arm(name, np.empty(0), failure=f"{call.cls.__name__} gives something else each time")
        facts.update(_judge(call), **_written(call.cls))
    except Exception as error:  # it asks for another precision, or for a state that is gone
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    return Arm(name, np.empty(0), time.perf_counter() - began, facts)


def _judge(call: _Call) -> dict[str, float | str | bool]:
    inputs = [t for t in tensors((call.args, call.kwargs)) if t.requires_grad and t.numel() <= MAX_NUMBERS]
    worst: dict[str, float | str | bool] = {"off": 0.0, "identity": _identity(call, inputs)}
    for number, given in enumerate(inputs):
        slopes = [_slopes(call, given, seed) for seed in range(DIRECTIONS)]
        if all(slope.backward == 0 for slope in slopes):
            worst["silent"] = True
        flat = all(
            abs(s.finer) <= FLAT * abs(s.backward) and abs(s.difference) <= FLAT * abs(s.backward) for s in slopes
        )
        smooth = [slope.off for slope in slopes if slope.smooth or flat]
        off = float(np.median(smooth)) if smooth else 0.0
        if off > float(worst["off"]):
            stops = all(slope.backward == 0 for slope in slopes)
            worst.update({"off": off, "passes": flat or _passes(call, given), "stops": stops, "input": float(number)})
            worst["factor"] = _factor(slopes)
    worst["says"] = "agrees" if float(worst["off"]) < 1e-3 else f"differs by {100 * float(worst['off']):.2g} %"
    return worst


def _written(cls: type[torch.autograd.Function]) -> dict[str, float | str | bool]:
    """Where the backward of a function stands: "backward_file", "backward_line", "backward_text"; nothing where it is not known."""
    code = getattr(inspect.unwrap(cls.backward), "__code__", None)
    if code is None:
        return {}
    lines = range(code.co_firstlineno, code.co_firstlineno + 8)  # decorators stand before it
    line = next((at for at in lines if "def " in linecache.getline(code.co_filename, at)), code.co_firstlineno)
    text = linecache.getline(code.co_filename, line).strip()
    return {"backward_file": code.co_filename, "backward_line": float(line), "backward_text": text}


def _factor(slopes: list[_Slopes]) -> float:
    """How many times too large the gradient is, where that is the same along all directions; else NaN."""
    ratios = [slope.backward / slope.finer for slope in slopes if slope.finer]
    same = len(ratios) == DIRECTIONS and max(ratios) - min(ratios) <= 1e-3 * abs(max(ratios, key=abs))
    return ratios[0] if same else math.nan


def _passes(call: _Call, given: Tensor) -> bool:
    """Whether a function of single numbers has a gradient only where it is flat, and the right one elsewhere."""
    outputs = _run(call)
    if len(outputs) != 1 or outputs[0].shape != given.shape:
        return False
    generator = torch.Generator().manual_seed(0)  # with ones alone a gradient that ignores what comes from behind fits
    behind = torch.rand(given.shape, generator=generator, dtype=torch.float64).to(given.device) + 0.5
    (gradient,) = torch.autograd.grad((outputs[0].double() * behind).sum(), [given], allow_unused=True)
    up, down = (_run(call, given, given.detach() + sign * STEP)[0].detach() for sign in (1, -1))
    half = torch.arange(given.numel(), device=given.device).reshape(given.shape) % 2 == 0
    alone = _run(call, given, given.detach() + STEP * half.double())[0].detach()
    if gradient is None or not torch.equal(alone[half], up[half]) or not torch.equal(alone[~half], outputs[0][~half]):
        return False
    slope = behind * (up - down) / (2 * STEP)
    wrong = (slope - gradient).abs() > 1e-3 * torch.maximum(slope.abs(), gradient.abs())
    return bool(wrong.any()) and bool((slope[wrong].abs() <= FLAT).all())


def _slopes(call: _Call, given: Tensor, seed: int) -> _Slopes:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(given.shape, generator=generator, dtype=torch.float64).to(given.device)
    outputs = _run(call)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device) for o in outputs]
    total = torch.stack([(o.double() * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum()
    (gradient,) = torch.autograd.grad(total, [given], allow_unused=True)
    backward = 0.0 if gradient is None else float((gradient.double() * direction).sum())
    scale = STEP * max(1.0, float(given.detach().abs().mean()))
    return _Slopes(
        _quotient(call, given, direction, weights, scale),
        _quotient(call, given, direction, weights, scale / 2),
        backward,
    )


def _quotient(call: _Call, given: Tensor, direction: Tensor, weights: list[Tensor], step: float) -> float:
    def value(sign: float) -> float:
        moved = given.detach() + sign * step * direction
        outputs = _run(call, given, moved)
        return math.fsum(float((o.double() * w).sum()) for o, w in zip(outputs, weights, strict=True))

    return (value(1.0) - value(-1.0)) / (2 * step)


def _run(call: _Call, given: Tensor | None = None, instead: Tensor | None = None) -> list[Tensor]:
    """The float outputs of the function, with one input replaced."""

    def chosen(tensor: Tensor) -> Tensor:
        # A fresh node each time: functions may write into what they are given.
        return (instead if tensor is given and instead is not None else tensor).clone()

    args, kwargs = substitute((call.args, call.kwargs), chosen)
    result = call.cls.apply(*args, **kwargs)
    return [t for t in tensors(result) if t.is_floating_point()]


def _repeats(call: _Call) -> bool:
    torch.manual_seed(1)
    one = _run(call)
    torch.manual_seed(2)
    return all(torch.equal(a, b) for a, b in zip(one, _run(call), strict=True))


def _identity(call: _Call, inputs: list[Tensor]) -> bool:
    outputs = _run(call)
    return len(outputs) == 1 and any(o.shape == outputs[0].shape and torch.equal(o, outputs[0]) for o in inputs)
