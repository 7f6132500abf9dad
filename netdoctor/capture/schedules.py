"""How long a learning-rate schedule is meant to be, and after how many calls it has warmed up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netdoctor.capture import planned
from netdoctor.capture.pure import is_pure
from netdoctor.recording import SourceLine

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer

WARM_UP, INSIDE = "warm-up", "scheduler inside"  # kinds of events
MOST = 10_000  # calls of a function of the user's: about 10 ms
PLATEAU = 100  # calls without a rise, after which the top is reached: warm-ups go in stairs, too
_LENGTHS = {
    "OneCycleLR": "total_steps",
    "CosineAnnealingLR": "T_max",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
}


def built(observer: Observer, scheduler: Any, source: SourceLine | None) -> None:
    """Keep what a new scheduler is: its kind and length, its warm-up and the learning rate after it, those inside of it, and
    a copy that can be asked for its rates."""
    recorder, step = observer.recorder, observer.step
    planned.keep(observer.program.planned, scheduler, step)
    recorder.count("scheduler built", step, *length(scheduler), source)
    inside = getattr(scheduler, "_schedulers", ())
    for _ in inside if isinstance(inside, list | tuple) else ():
        recorder.count(INSIDE, step)
    found = warm_up(scheduler)
    if found is not None:
        recorder.count(WARM_UP, step, f"{found[1]:.9g}", float(found[0]), source)


def length(scheduler: Any) -> tuple[str, float]:
    """The kind of a scheduler, and after how many calls of its `step` it comes to its end; NaN for one without an end."""
    kind = type(scheduler).__name__
    found = getattr(scheduler, _LENGTHS.get(kind, ""), None)
    return kind, float(found) if isinstance(found, int) else math.nan


def warm_up(scheduler: Any) -> tuple[int, float] | None:
    """After how many calls the learning rate of the first group has risen to its top, and that rate; None where it does not rise.

    A LambdaLR is asked by its own function, where that does nothing but compute.
    """
    try:
        kind, rate = type(scheduler).__name__, float(scheduler.base_lrs[0])
        if kind == "LinearLR" and scheduler.start_factor < scheduler.end_factor:
            return int(scheduler.total_iters), rate * float(scheduler.end_factor)
        if kind == "ConstantLR" and scheduler.factor < 1:
            return int(scheduler.total_iters), rate
        if kind != "LambdaLR" or not is_pure(scheduler.lr_lambdas[0]):
            return None
        found = _top(scheduler.lr_lambdas[0])
        return None if found is None else (found[0], rate * found[1])
    except Exception:  # the user's own function, which may not be made for as many calls
        return None


def _top(factor: Callable[[int], Any]) -> tuple[int, float] | None:
    """The first number of calls after which a factor that rises from the start rises no more, and the factor there."""
    top, best = 0, float(factor(0))
    for call in range(1, MOST):
        value = float(factor(call))
        if value > best:
            top, best = call, value
        elif value < best or call - top >= PLATEAU:
            return (top, best) if top else None
    return None
