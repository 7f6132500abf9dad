"""The learning rates that a schedule would give, call by call: asked of a copy of it that moves no optimizer of the user's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.optim import lr_scheduler

from netdoctor.capture.pure import is_pure

MOST = 10_000  # calls that are asked: about 0.1 s
_KEPT = 4  # schedules of a run: more belong to loops that make them anew
_MOVED = ("lr", "momentum", "betas")  # what schedules move
_ASK_MORE = frozenset({"ReduceLROnPlateau", "MultiplicativeLR"})  # losses; functions, call after call

Rates = list[dict[str, Any]]  # by group of the optimizer


class _StandIn:
    """What a schedule needs of its optimizer: the options of its groups."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups: Rates = [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]

    def step(self) -> None:
        """A schedule asks whether its optimizer stepped before it, and warns where it did not."""

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    _opt_called = True


@dataclass(frozen=True, slots=True)
class Planned:
    """A schedule as it was built before training step `begins`."""

    schedule: Any  # a copy, over a stand-in for the optimizer
    begins: int

    def course(self, calls: int) -> list[Rates]:
        """What the groups' options are after 0, 1, ... `calls` calls of the schedule's `step`."""
        schedule = _copied(self.schedule)
        found = [_now(schedule)]
        for _ in range(min(calls, MOST)):
            schedule.step()
            found.append(_now(schedule))
        return found


def _now(schedule: Any) -> Rates:
    groups = schedule.optimizer.param_groups
    return [{key: copy.copy(group[key]) for key in _MOVED if key in group} for group in groups]


def keep(planned: list[Planned], scheduler: Any, step: int) -> None:
    """Keep a copy of a schedule of torch's that was just built; one by the user's function where that only computes."""
    try:
        if len(planned) < _KEPT and _may_be_asked(scheduler):
            planned.append(Planned(_copied(scheduler, {id(scheduler.optimizer): _StandIn(scheduler.optimizer)}), step))
    except Exception:  # what it holds cannot be copied
        return


def _copied(schedule: Any, known: dict[int, Any] | None = None) -> Any:
    """A copy that shares the functions: one may be a method of an object that holds the model and the data."""
    return _made_anew(schedule, {**{id(one): one for one in _functions(schedule)}, **(known or {})})


def _made_anew(schedule: Any, known: dict[int, Any]) -> Any:
    """By its attributes: `deepcopy` of the object itself would leave a mark on torch's class (`__slotnames__`)."""
    for part in getattr(schedule, "_schedulers", ()):
        known[id(part)] = _made_anew(part, known)
    made = known[id(schedule)] = object.__new__(type(schedule))
    vars(made).update(copy.deepcopy(vars(schedule), known))
    return made


def _functions(schedule: Any) -> Iterator[Any]:
    yield from getattr(schedule, "lr_lambdas", ())
    for part in getattr(schedule, "_schedulers", ()):
        yield from _functions(part)


def whole(planned: list[Planned]) -> Planned | None:
    """The only schedule of a training, of several the one that is made of them; None where there is no such one."""
    outer = [one for one in planned if hasattr(one.schedule, "_schedulers")] or planned
    return outer[0] if len(outer) == 1 and outer[0].begins == 0 else None


def _may_be_asked(scheduler: Any) -> bool:
    kind = type(scheduler)
    if vars(lr_scheduler).get(kind.__name__) is not kind or kind.__name__ in _ASK_MORE:
        return False
    functions = getattr(scheduler, "lr_lambdas", ())
    return all(map(is_pure, functions)) and all(map(_may_be_asked, getattr(scheduler, "_schedulers", ())))
