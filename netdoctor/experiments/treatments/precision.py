"""Treatments of number formats: a scaled loss, one operation in float32, weights in float32, a finite learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import function_name
from netdoctor.capture.step import Action, Iteration, Replay
from netdoctor.capture.tape import Entry
from netdoctor.capture.tree import substitute, tensors
from netdoctor.checks.numerics.half_precision_overflow import HalfPrecisionOverflow
from netdoctor.checks.numerics.half_precision_underflow import HalfPrecisionUnderflow
from netdoctor.checks.numerics.lost_updates import LostUpdates
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.optimization import scale_losses
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment, with_constants

_HALVES = frozenset({torch.float16, torch.bfloat16})
_CONVERSIONS = frozenset({"to", "half", "bfloat16", "type_as", "type"})
_LARGEST_SCALE, _LEAST_SCALE = 2.0**16, 2.0  # GradScaler begins with the first, and halves it while gradients overflow


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor


# --- gradients that float16 cannot hold ------------------------------------------------------------------------------


def scale_the_loss(case: Case) -> Treatment | None:
    """The loss times a power of two, and the gradients divided by it before they are clipped and used."""
    parameters = tuple(p for start in case.step.optimizers for group in start.parameters for p in group)
    cleared = all(any(a.kind == "zero" for a in iteration.actions) for iteration in case.step.iterations[1:])
    if not parameters or not cleared:
        return None

    scale = _scale(Bench(Sandbox(case.step), case.step.iterations))

    def apply(bench: Bench) -> None:
        bench.notes.append(f"the loss times {scale:g}")
        scale_losses(scale, bench)
        bench.iterations = [
            Iteration(list(_unscaled(it.actions, parameters, 1 / scale)), it.bytes) for it in bench.iterations
        ]

    limit = 100 * HalfPrecisionUnderflow.lost
    measure = Measure("gradient rounded to zero", lambda bench: 100 * _rounded(bench), limit, "%")
    return Treatment(apply, unit=1 / scale, measure=measure)


def _scale(bench: Bench) -> float:
    """The largest power of two for which no gradient of the first step overflows."""
    scale = _LARGEST_SCALE
    while scale > _LEAST_SCALE and not all(bool(g.isfinite().all()) for g in _gradients(bench, scale) if g is not None):
        scale /= 2
    return scale


def _unscaled(actions: list[Action], parameters: tuple[Tensor, ...], factor: float) -> Iterator[Action]:
    """The actions with the gradients multiplied once, after the last backward before they are used."""
    scaled = False
    for action in actions:
        if action.kind in ("clip", "step") and scaled:
            yield Action("scale", parameters=parameters, limit=factor)
            scaled = False
        scaled = scaled or action.backward is not None
        yield action


def _gradients(bench: Bench, factor: float = 1.0, exact: bool = False) -> list[Tensor | None]:
    """The gradients of the first backward call on the copy, times a factor; `exact`: without autocast."""
    backward = bench.iterations[0].backwards[0]
    if exact:
        entries = [replace(e, context=e.context and replace(e.context, autocast=None)) for e in backward.entries]
        backward = replace(backward, entries=entries)
    parameters = bench.sandbox.trainable()
    loss = Replay(bench.sandbox.copies).loss(backward, bench.sandbox.edit) * factor
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def _rounded(bench: Bench) -> float:
    """Of the gradient's entries that are not zero in float32, the share that is zero as the copy computes them.

    NaN where the step does not run in float32: a model whose weights are float16 themselves.
    """
    own, exact = _gradients(bench), _gradients(bench, exact=True)
    lost, count = 0, 0
    for one, other in zip(own, exact, strict=True):
        if one is None or other is None or other.dtype in _HALVES:
            continue
        wanted = other != 0
        lost, count = lost + int((wanted & (one == 0)).sum()), count + int(wanted.sum())
    return lost / count if count else math.nan


# --- one operation in float32 ----------------------------------------------------------------------------------------


class _Promoting(TorchFunctionMode):
    """What follows in float32: half-precision tensors are converted where they meet one of float32, as numpy would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function_name(func) not in _CONVERSIONS:
            dtypes = {tensor.dtype for tensor in tensors((args, kwargs)) if tensor.is_floating_point()}
            if torch.float32 in dtypes and dtypes & _HALVES and not _autocasts():
                args, kwargs = substitute((tuple(args), kwargs), _float32)
        return func(*args, **kwargs)


def _autocasts() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def in_float32(case: Case) -> Treatment | None:
    """The finding's operation on its line in float32, with a result of float32."""
    place = case.finding.location
    if not place.operation:
        return None
    names, line = frozenset({place.operation}), (place.file, place.line) if place.file and place.line else None
    original = case.places.module(place.module or "")
    levels: dict[int, float] = {}  # by id of the sandbox: how near the operation comes to the end of its format

    def exchange(bench: Bench, compute: Callable[..., Any]) -> None:
        def noting(func: Any, args: Any, kwargs: Any) -> Any:
            result = compute(func, args, kwargs)
            levels[id(bench.sandbox)] = max(levels.get(id(bench.sandbox), 0.0), _level(result))
            return result

        module = None if original is None else bench.copy_of(original)
        exchanges = [Exchange(m, names, noting, line) for m in (None, module)[: 1 if module is None else 2]]
        exchange_operations(bench, exchanges)

    def apply(bench: Bench) -> None:
        bench.stack.enter_context(_Promoting())
        exchange(bench, _computed_in_float32)

    overflowed = case.recording.origin is not None  # then the control ends in NaN, which decides
    near = Measure(
        f"of the largest number of its format, {place.operation} reaches",
        lambda bench: 100 * levels.get(id(bench.sandbox), math.nan),
        100 * HalfPrecisionOverflow.near,
        "%",
    )
    beside = (
        Treatment().beside if overflowed else lambda bench: exchange(bench, lambda f, args, kwargs: f(*args, **kwargs))
    )
    return Treatment(apply, beside=beside, measure=None if overflowed else near)


def _level(result: Any) -> float:
    found = [t for t in tensors(result) if t.is_floating_point() and t.numel()]
    return max((float(t.detach().abs().max()) / torch.finfo(t.dtype).max for t in found), default=0.0)


def _computed_in_float32(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = substitute((tuple(args), dict(kwargs)), _float32)
    if function_name(func) in _CONVERSIONS:
        return args[0] if args else kwargs["input"]
    kwargs = {
        key: torch.float32 if value in _HALVES else value for key, value in kwargs.items() if _is_dtype(value)
    } | {key: value for key, value in kwargs.items() if not _is_dtype(value)}
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return func(*args, **kwargs)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype)


# --- weights in float32 ----------------------------------------------------------------------------------------------


def weights_in_float32(case: Case) -> Treatment:
    """All weights, buffers and inputs in float32; what was computed in half precision is computed so under autocast."""
    held = {p.dtype for module in case.step.modules for p in module.parameters()}
    half = next((dtype for dtype in held if dtype in _HALVES), None)

    def apply(bench: Bench) -> None:
        for module in bench.sandbox.modules():
            module.float()
        for optimizer in bench.sandbox.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.data = _float32(parameter.data)
            for parameter, state in optimizer.state.items():
                optimizer.state[parameter] = {k: _float32(v) if isinstance(v, Tensor) else v for k, v in state.items()}
        bench.rewrite(lambda entry: _under_autocast(with_constants(entry, _float32), half))

    limit = 100 * LostUpdates.lost
    return Treatment(apply, measure=Measure("updates that leave a weight as it was", _lost_updates, limit, "%"))


def _under_autocast(entry: Entry, half: torch.dtype | None) -> Entry:
    if entry.context is None or entry.context.autocast is not None or half is None or entry.module is None:
        return entry
    device = next((p.device.type for p in entry.module.parameters()), "cpu")
    return replace(entry, context=replace(entry.context, autocast=(device, half)))


def _lost_updates(bench: Bench) -> float:
    """Of the matrices' entries that have a gradient, the percentage that one more step leaves unchanged."""
    matrices = [p for p in bench.sandbox.trainable() if p.dim() > 1]
    before = [p.detach().clone() for p in matrices]
    bench.sandbox.iterate(bench.iterations[0], first_pass=False)
    gone, count = 0, 0
    for matrix, old in zip(matrices, before, strict=True):
        if matrix.grad is not None and matrix.grad.layout is torch.strided:
            moved = matrix.grad != 0
            gone, count = gone + int((moved & (matrix.detach() == old)).sum()), count + int(moved.sum())
    return 100 * gone / count if count else math.nan


# --- a learning rate that is no number -------------------------------------------------------------------------------


def finite_rate(case: Case) -> Treatment | None:
    """The nearest finite learning rate of the captured steps in place of those that are NaN or Inf."""
    steps = [a for iteration in case.step.iterations for a in iteration.actions if a.kind == "step"]
    known = [lr for action in steps for lr in action.lrs if math.isfinite(lr) and lr > 0]
    if not known or all(math.isfinite(lr) for action in steps for lr in action.lrs):
        return None

    def mended(action: Action) -> Action:
        return replace(action, lrs=tuple(lr if math.isfinite(lr) else known[0] for lr in action.lrs))

    def apply(bench: Bench) -> None:
        bench.notes.append(f"a learning rate of {known[0]:g} in place of what is no number")
        bench.iterations = [Iteration([mended(a) for a in it.actions], it.bytes) for it in bench.iterations]

    return Treatment(apply)


TREATMENTS: dict[str, Maker] = {
    "loss-scaling": scale_the_loss,
    "float32-operation": in_float32,
    "float32-weights": weights_in_float32,
    "schedule": finite_rate,
}
