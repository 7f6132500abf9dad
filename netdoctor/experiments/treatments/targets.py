"""Treatments of targets that trained weights make: cut off from the gradient, or made by weights that rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from netdoctor.checks.loss.attraction import bootstrapped_side
from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.loss.trained_targets import all_pairs
from netdoctor.experiments.treatments.gradients import apart, with_and_without
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment

_ROUNDING = 1e-4  # percent: what is no movement, and no gradient
_NAMES = (("input", "x1", "input1"), ("target", "x2", "input2", "other"))  # torch's, of the two that are compared


# --- a target that gets a gradient -----------------------------------------------------------------------------------


def detach_target(case: Case) -> Treatment | None:
    """`.detach()` on the target of each comparison on the finding's line."""
    place = case.finding.location
    pair = next((p for p in all_pairs(graphs(case.recording)) if p.operation.name == place.operation), None)
    if pair is None:
        return None
    names, line = frozenset({pair.operation.name}), (place.file, place.line) if place.file and place.line else None
    side = bootstrapped_side(pair)

    def changed(func: Any, args: Any, kwargs: Any) -> Any:
        return _with_side(func, args, kwargs, 1 if side is None else side, Tensor.detach)

    def apply(bench: Bench) -> None:
        modules = [child for top in bench.sandbox.modules() for child in top.modules()]
        exchange_operations(bench, [Exchange(module, names, changed, line) for module in (None, *modules)])

    return Treatment(apply, measure=_gradient_of_target(apply))


def _with_side(func: Any, args: Any, kwargs: Any, side: int, change: Callable[[Tensor], Tensor]) -> Any:
    """The call with one of the two compared tensors changed."""
    if side < len(args):
        if isinstance(args[side], Tensor):
            args = (*args[:side], change(args[side]), *args[side + 1 :])
        return func(*args, **kwargs)
    return func(
        *args, **{k: change(v) if k in _NAMES[side] and isinstance(v, Tensor) else v for k, v in kwargs.items()}
    )


def _gradient_of_target(apply: Callable[[Bench], None]) -> Measure:
    """The share of the gradient that comes through the target: the gradient as it is beside that with the target cut off.

    The loss is no witness: pulling the target along is the quickest way down. Nor is a collapse one that a hundred steps
    always show: where BatchNorm keeps every dimension's spread, it takes thousands.
    """

    def share(bench: Bench) -> float:
        return apart(*with_and_without(bench, apply))

    return Measure("gradient through the target, of the whole", share, _ROUNDING, "%", witness=False)


# --- a teacher that is trained ---------------------------------------------------------------------------------------


def freeze_teacher(case: Case) -> Treatment | None:
    """The teacher's weights want no gradient and belong to no optimizer."""
    weights = list(_weights(case))
    if not weights:
        return None

    def apply(bench: Bench) -> None:
        copies = [bench.sandbox.copies.of(weight) for weight in weights]
        for copied in copies:
            copied.requires_grad_(False)
        resting = {id(copied) for copied in copies}
        for optimizer in bench.sandbox.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in resting]

    def moved(bench: Bench) -> float:
        pairs = [(bench.sandbox.copies.of(w).detach(), case.step.starts[id(w)][1]) for w in weights]
        square = sum(float((now - start).double().square().sum()) for now, start in pairs)
        size = sum(float(start.double().square().sum()) for _, start in pairs)
        return 100 * math.sqrt(square / size) if size else math.nan

    name = "the teacher's weights are moved by the optimizer, of their size"
    return Treatment(apply, measure=Measure(name, moved, _ROUNDING, "%", witness=False))


def _weights(case: Case) -> Iterator[Tensor]:
    """The weights of the finding's modules that an optimizer trains."""
    owned = {id(p) for start in case.step.optimizers for group in start.parameters for p in group}
    seen: set[int] = set()
    for name in case.finding.places:
        module = case.places.module(name)
        for parameter in () if module is None else module.parameters():
            if id(parameter) in owned & case.step.starts.keys() and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


TREATMENTS: dict[str, Maker] = {"detach-target": detach_target, "freeze-teacher": freeze_teacher}
