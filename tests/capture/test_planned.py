"""Copies of schedules give the rates that the schedules themselves give, and move no optimizer of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from netdoctor.capture.planned import Planned, keep, whole
from tests.capture.observing import observing

CALLS = 12
Make = Callable[[torch.optim.Optimizer], Any]
ASKED: list[int] = []


def optimizer(kind: Any = torch.optim.SGD) -> torch.optim.Optimizer:
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    return kind([{"params": [first]}, {"params": [second], "lr": 0.01}], lr=0.1)


def chained(o: torch.optim.Optimizer) -> Any:
    parts = [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 6)]
    return lr_scheduler.SequentialLR(o, parts, milestones=[4])


def logs(step: int) -> float:
    ASKED.append(step)
    return 1.0


SCHEDULES: dict[str, Make] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 5)),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=8),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=CALLS + 1),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "several": chained,
}


def rates(o: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in o.param_groups]


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=list(SCHEDULES))
def test_the_course_of_a_schedule(make: Make) -> None:
    own = optimizer()
    with observing() as seen:
        schedule = make(own)
    planned = whole(seen.observer.program.planned)
    assert planned is not None
    before = rates(own)
    course = [[float(group["lr"]) for group in groups] for groups in planned.course(CALLS)]
    assert course == [[float(group["lr"]) for group in groups] for groups in planned.course(CALLS)]  # asked twice
    assert rates(own) == before
    true = [before]
    for _ in range(CALLS):
        own.step()
        schedule.step()
        true.append(rates(own))
    assert course == [pytest.approx(each) for each in true]


def test_a_momentum_that_moves_along() -> None:
    planned: list[Planned] = []
    keep(planned, lr_scheduler.OneCycleLR(optimizer(torch.optim.Adam), 0.5, total_steps=10), 0)
    betas = [groups[0]["betas"][0] for groups in planned[0].course(9)]
    assert max(betas) == pytest.approx(0.95)
    assert min(betas) < 0.87


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.LambdaLR(o, [lambda step: 1.0, logs]),
        lambda o: lr_scheduler.ReduceLROnPlateau(o),
        lambda o: type("Own", (lr_scheduler.StepLR,), {})(o, 3),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LambdaLR(o, logs), lr_scheduler.StepLR(o, 3)], milestones=[4]
        ),
    ],
    ids=["function", "plateau", "subclass", "part"],
)
def test_what_is_not_asked(make: Make) -> None:
    schedule, planned = make(optimizer()), list[Planned]()
    asked = len(ASKED)
    keep(planned, schedule, 0)
    assert (planned, len(ASKED)) == ([], asked)


class Trainer:
    """Holds more than a schedule may copy."""

    warm = 5

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("copied")

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warm)


def test_the_object_of_a_method_is_not_copied() -> None:
    own, planned, trainer = optimizer(), list[Planned](), Trainer()
    parts = [lr_scheduler.LambdaLR(own, trainer.factor), lr_scheduler.ConstantLR(own, 0.5)]
    keep(planned, lr_scheduler.SequentialLR(own, parts, milestones=[8]), 0)
    course = [groups[0]["lr"] for groups in planned[0].course(6)]
    assert course == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])


def test_which_is_the_schedule_of_a_training() -> None:
    one, many = (list[Planned]() for _ in range(2))
    keep(one, SCHEDULES["linear"](optimizer()), 7)
    assert whole(one) is None  # built on the way
    for name in ("linear", "cosine"):
        keep(many, SCHEDULES[name](optimizer()), 0)
    assert whole(many) is None
    assert whole(many[:1]) is many[0]
    assert whole([]) is None


def test_what_is_kept_is_let_go() -> None:
    with observing() as seen:
        SCHEDULES["linear"](optimizer())
    program = seen.observer.program
    assert len(program.training_step().planned) == 1
    program.release()
    assert program.planned == []
