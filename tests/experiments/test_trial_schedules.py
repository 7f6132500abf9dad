"""Trials of a schedule that is stepped with the optimizer, where the script did so once per epoch, or never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Recording
from netdoctor.report import Report
from tests.capture.observing import observing

STEPS, WARM = 160, 50
Make = Callable[[torch.optim.Optimizer], Any]


def warm(o: torch.optim.Optimizer) -> Any:
    return lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / WARM))


def trained(make: Make, every: int, lr: float = 0.2, set_rate: float | None = None) -> tuple[TrainingStep, Recording]:
    """A training whose schedule is stepped every so many steps; 0: never. `set_rate`: what the loop sets on its own."""
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    y, model = (x[:, :3].sum(1) > 0).long(), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    with observing() as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        schedule = make(optimizer)
        for step in range(STEPS):
            rows = torch.randint(0, len(x), (32,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            if every and step % every == every - 1:
                schedule.step()
            for group in optimizer.param_groups if set_rate else ():
                group["lr"] = set_rate
    return seen.step, seen.recording


def tried(step: TrainingStep, recording: Recording, name: str = "schedule-per-step") -> Trial | None:
    found = Finding("x", "title", Severity.ERROR, "why", Location(), fixes=(Fix(name, ""),))
    report = Report("train.py", "sick", STEPS, findings=(found,))
    made = try_fixes(report, recording, step, Places(step), (), Budget(60), lambda _: None)
    assert made.crashes == ()
    return made.findings[0].fixes[0].trial


@pytest.mark.parametrize(("every", "name"), [(40, "schedule-per-step"), (0, "scheduler-after-step")])
def test_a_warm_up_that_never_came_to_its_top(every: int, name: str) -> None:
    trial = tried(*trained(warm, every), name)
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert trial.says == "the schedule of 160 steps run through in 100"


def test_both_arms_have_the_rates_of_the_schedule() -> None:
    step, recording = trained(warm, 40)
    found = Finding("x", "t", Severity.ERROR, "e", Location(), fixes=(Fix("schedule-per-step", ""),))
    treatment = treatment_of(Case(step, recording, found, found.fixes[0], Places(step)))
    assert treatment is not None
    bench = Bench(treatment.sandbox(step), step.iterations)
    treatment.both(bench)
    assert rates(bench) == pytest.approx([0.2 * (1 + n * STEPS // 100 // 40) / WARM for n in range(100)])
    treatment.apply(bench)
    assert rates(bench) == pytest.approx([0.2 * min(1, (1 + n * STEPS // 100) / WARM) for n in range(100)])


def rates(bench: Bench) -> list[float]:
    return [action.lrs[0] for it in bench.iterations for action in it.actions if action.kind == "step"]


def test_a_rate_that_is_useless_at_its_top_too() -> None:
    """A warm-up to a rate that trains nothing is stepped in vain."""
    trial = tried(*trained(warm, 40, lr=1e-6))
    assert trial is not None
    assert trial.verdict is Verdict.NO_EFFECT


def test_a_rate_that_is_too_high_at_its_top() -> None:
    trial = tried(*trained(warm, 40, lr=15.0))
    assert trial is not None
    assert trial.verdict is Verdict.WORSE


@pytest.mark.parametrize(
    ("make", "every", "set_rate"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS), 40, None),  # nothing to rise to
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 3) / 6)), 40, None),  # it came to its top
        (warm, 1, None),  # as it should be
        (warm, 40, 0.1),  # the loop sets the rate
    ],
    ids=["cosine", "near", "stepped", "set"],
)
def test_what_is_not_tried(make: Make, every: int, set_rate: float | None) -> None:
    assert tried(*trained(make, every, set_rate=set_rate)) is None


# --- a rate for each group -------------------------------------------------------------------------------------------


def grouped(rates: tuple[float, float], peak: float) -> tuple[TrainingStep, Recording]:
    """A net whose first layer reads large numbers, and is to move slowly; one cycle with the same peak for both."""
    torch.manual_seed(0)
    x = torch.randn(256, 6) * 30
    y, model = (x[:, :3].sum(1) > 0).long(), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    with observing() as seen:
        groups = [{"params": model[0].parameters(), "lr": rates[0]}, {"params": model[2].parameters(), "lr": rates[1]}]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.randint(0, len(x), (32,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return seen.step, seen.recording


def test_the_groups_get_their_own_rates_back() -> None:
    trial = tried(*grouped((1e-4, 0.02), 2.0), "keep-group-rates")
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert trial.says == "the rates of 160 steps run through in 100"


def test_rates_of_groups_that_make_no_difference() -> None:
    trial = tried(*grouped((1e-4, 1e-3), 1e-4), "keep-group-rates")
    assert trial is not None
    assert trial.verdict is not Verdict.CURED


def test_groups_that_kept_their_rates_are_not_tried() -> None:
    assert tried(*trained(warm, 1), "keep-group-rates") is None
