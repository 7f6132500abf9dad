from __future__ import annotations

from typing import Any

import pytest

from netdoctor.checks.training.group_rates_overwritten import GroupRatesOverwritten
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Event, Optimizer, SourceLine
from tests.checks.builders import Builder

BUILT = SourceLine("t.py", 5, "opt = SGD(groups, momentum=0.9)")
ONE_CYCLE = SourceLine("t.py", 9, "sched = OneCycleLR(opt, max_lr=top, total_steps=900)")


def run(rates: tuple[float, ...], used: tuple[Any, ...], end: float = 1.0, steps: int = 100) -> Builder:
    groups = tuple({"lr": rate} for rate in used)
    build = Builder(steps).loss(lambda step: 1.0 + (end - 1.0) * step / steps)
    build.recording.optimizers.append(Optimizer(0, "SGD", groups, (), BUILT, rates=rates))
    return build


def judged(build: Builder) -> list[Finding]:
    return list(GroupRatesOverwritten().judge(build.done()))


@pytest.mark.parametrize(
    ("rates", "used", "fires"),
    [
        ((0.001, 0.5), (0.02, 0.02), True),
        ((0.001, 0.5), (0.5, 0.5), True),
        ((0.1, 0.2), (0.1, 0.1), True),
        ((0.1, 0.199), (0.1, 0.1), False),  # hardly apart
        ((0.0, 0.1), (0.1, 0.1), True),  # one was to stand still
        ((0.001, 0.5), (0.0, 0.0), False),  # a warm-up from nothing
        ((0.001, 0.5), (0.001, 0.5), False),
        ((0.001, 0.5), (0.0001, 0.05), False),
        ((0.001, 0.5, 0.5), (0.02, 0.02), False),  # a group was taken away
        ((0.1,), (0.2,), False),
        ((), (0.1, 0.1), False),  # built out of sight
        ((0.001, 0.5), (None, None), False),
    ],
)
def test_rates_of_the_groups(rates: tuple[float, ...], used: tuple[Any, ...], fires: bool) -> None:
    assert bool(judged(run(rates, used))) is fires


@pytest.mark.parametrize(("end", "severity"), [(1.2, Severity.ERROR), (0.01, Severity.WARNING)])
def test_an_error_where_training_is_hurt(end: float, severity: Severity) -> None:
    (found,) = judged(run((0.001, 0.5), (0.02, 0.02), end))
    assert found.severity is severity
    assert found.location.line == BUILT.line
    assert (found.evidence[0].measured, found.evidence[0].limit) == (500.0, 2.0)
    assert found.fixes[0].code.startswith("for group, rate in zip(opt.param_groups, [0.001, 0.5]):")


def test_the_line_of_a_cycle_takes_a_list() -> None:
    build = run((0.001, 0.5), (0.02, 0.02))
    build.recording.events.append(Event(0, "scheduler built", "OneCycleLR", 900.0, ONE_CYCLE))
    (found,) = judged(build)
    assert found.location.line == ONE_CYCLE.line
    assert found.fixes[0].code == "sched = OneCycleLR(opt, max_lr=[0.001, 0.5], total_steps=900)"
    build.recording.events.append(Event(0, "scheduler built", "OneCycleLR", 90.0, ONE_CYCLE))  # which of the two?
    assert judged(build)[0].location.line == BUILT.line
