"""Trials of number formats, targets, labels and columns: what they measure on both copies, and their verdicts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.graph import StepGraph
from netdoctor.recording import Arm, Recording
from netdoctor.report import Report
from tests.experiments.capturing import mlp, watched

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def trained(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.1),
    rates: tuple[float, ...] = (),
    size: int = 32,
) -> tuple[TrainingStep, StepGraph]:
    def train() -> None:
        optimizer = make(model.parameters())
        for number in range(len(x) // size):
            rows = slice(size * number, size * (number + 1))
            optimizer.zero_grad()
            loss(model, x[rows], y[rows]).backward()
            if rates:
                optimizer.param_groups[0]["lr"] = rates[number]
            optimizer.step()

    return watched(train)


def tried(
    step: TrainingStep,
    graph: StepGraph,
    check: str,
    treatment: str,
    where: Location | None = None,
    places: tuple[str, ...] = (),
    says: str = "says",
    **known: Any,
) -> Trial:
    recording = Recording(facts={"loss_lower_bound": 0.0, **known.pop("facts", {})}, **known)
    recording.graph = graph
    finding = Finding(
        check,
        "title",
        Severity.ERROR,
        "why",
        location=where or Location(),
        fixes=(Fix(treatment, says),),
        places=places,
    )
    report = Report("train.py", "sick", 3, findings=(finding,))
    found = try_fixes(report, recording, step, Places(step), (), Budget(120), lambda _: None)
    assert found.crashes == ()
    trial = found.findings[0].fixes[0].trial
    assert trial is not None
    return trial


def measured(trial: Trial) -> tuple[float, float]:
    assert trial.measured is not None
    return trial.measured.control, trial.measured.treated


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(128, 6)
    return x, (x @ torch.randn(6, 3)).argmax(1)


# --- number formats --------------------------------------------------------------------------------------------------


def test_loss_scaling_keeps_the_gradient() -> None:
    x, _ = data()

    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            made = model(a)
        return 1e-4 * F.mse_loss(made.float(), b)

    step, graph = trained(mlp(outputs=1), loss, x, x[:, :1].sin(), lambda p: torch.optim.Adam(p, lr=1e-3))
    trial = tried(step, graph, "half-precision-underflow", "loss-scaling")
    control, treated = measured(trial)
    assert control > 10 > 1 > treated
    assert trial.verdict is Verdict.CURED
    assert trial.treated[0] == pytest.approx(trial.control[0], rel=1e-3)  # told in the script's own unit
    assert "the loss times" in trial.says


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        energy = (200 * self.first(x)).square().mean(1, keepdim=True)
        made: Tensor = self.last(energy.log1p())
        return made


def test_an_operation_in_float32() -> None:
    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return F.cross_entropy(model(a), b)

    step, graph = trained(Energy(), loss, *data())
    where = Location(operation="square")
    trial = tried(step, graph, "half-precision-overflow", "float32-operation", where, origin=object())
    assert not math.isfinite(trial.control[-1])
    assert all(map(math.isfinite, trial.treated))
    assert trial.verdict in (Verdict.CURED, Verdict.EASED)


def test_weights_in_float32_move() -> None:
    x, y = data()
    model = mlp().to(torch.bfloat16)
    step, graph = trained(
        model, lambda m, a, b: F.cross_entropy(m(a), b), x.bfloat16(), y, lambda p: torch.optim.Adam(p, lr=1e-5)
    )
    trial = tried(step, graph, "lost-updates", "float32-weights")
    control, treated = measured(trial)
    assert control > 80
    assert treated < 5
    assert trial.verdict is Verdict.CURED


def test_a_rate_that_is_no_number() -> None:
    step, graph = trained(mlp(), lambda m, a, b: F.cross_entropy(m(a), b), *data(), rates=(0.5, 0.5, math.nan, 0.5))
    trial = tried(step, graph, "non-finite-parameter", "schedule")
    assert not math.isfinite(trial.control[-1])
    assert trial.verdict is Verdict.CURED
    assert "0.5 in place of what is no number" in trial.says


# --- targets ---------------------------------------------------------------------------------------------------------


class Pupil(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pupil = mlp()
        self.teacher = copy.deepcopy(self.pupil)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.pupil(x), self.pupil(x + 0.1), self.teacher(x)


def test_a_teacher_rests() -> None:
    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        made, noisy, target = model(a)
        return F.cross_entropy(made, b) + F.mse_loss(noisy.softmax(1), target.softmax(1))

    step, graph = trained(Pupil(), loss, *data())
    trial = tried(step, graph, "teacher-in-optimizer", "freeze-teacher", places=("teacher.0", "teacher.2"))
    control, treated = measured(trial)
    assert control > 0.01
    assert treated == 0.0
    assert trial.verdict is Verdict.CURED


def test_a_target_without_gradient() -> None:
    def loss(model: nn.Module, a: Tensor, _: Tensor) -> Tensor:
        target = a[:, :1] + 0.9 * model(a.roll(1, 0))
        return F.mse_loss(model(a), target)

    step, graph = trained(mlp(outputs=1), loss, *data())
    trial = tried(step, graph, "missing-stop-gradient", "detach-target", Location(operation="mse_loss"))
    control, treated = measured(trial)
    assert control > 10
    assert treated == 0.0
    assert trial.verdict is Verdict.CURED


# --- labels and columns ----------------------------------------------------------------------------------------------


def test_one_label_per_input() -> None:
    x, y = data()
    x, y = x.clone(), y.clone()
    x[2::4], x[1::4] = x[::4], x[::4]
    y[2::4], y[1::4] = (y[::4] + 1) % 3, y[::4]
    step, graph = trained(mlp(), lambda m, a, b: F.cross_entropy(m(a), b), x, y)
    trial = tried(step, graph, "conflicting-labels", "clean-labels")
    assert measured(trial) == (25.0, 0.0)
    assert trial.verdict is Verdict.CURED
    assert trial.treated[-1] < trial.control[-1]


def test_labels_without_conflict_are_left() -> None:
    step, graph = trained(mlp(), lambda m, a, b: F.cross_entropy(m(a), b), *data())
    with pytest.raises(AssertionError):
        tried(step, graph, "conflicting-labels", "clean-labels")


def test_rare_classes_are_found() -> None:
    torch.manual_seed(1)
    x = torch.randn(1024, 6)
    score = x[:, 0] + x[:, 1] + torch.randn(1024)
    y = (score > score.quantile(0.95)).long()
    step, graph = trained(mlp(outputs=2), lambda m, a, b: F.cross_entropy(m(a), b), x, y, size=64)
    counts = np.array([float((y == 0).sum()), float((y == 1).sum())])
    arms = {"final/evaluation": Arm("final/evaluation", np.empty(0), curves={"targets": counts})}
    trial = tried(step, graph, "class-imbalance", "class-weights", arms=arms, facts={"loss_family": "cross_entropy"})
    control, treated = measured(trial)
    assert control > 80
    assert treated < 50
    assert trial.verdict is Verdict.CURED


def test_a_dead_column_is_left_out() -> None:
    x, y = data()
    x = x.clone()
    x[:, 4] = 0.5
    step, graph = trained(mlp(), lambda m, a, b: F.cross_entropy(m(a), b), x, y)
    trial = tried(step, graph, "constant-feature", "drop-feature", places=("column 4",))
    assert measured(trial) == (1.0, 0.0)
    assert trial.verdict is Verdict.CURED


# --- on top of another fix -------------------------------------------------------------------------------------------


def test_a_fix_that_another_fault_blocks_is_tried_on_top_of_its_cure() -> None:
    """At a rate that is far too low the missing parameters alone show nothing; with a good one they do."""
    x, y = data()
    model = mlp()
    step, graph = trained(
        model, lambda m, a, b: F.cross_entropy(m(a), b), x, y, lambda _: torch.optim.SGD(model[2].parameters(), lr=1e-5)
    )
    recording = Recording(facts={"loss_lower_bound": 0.0})
    recording.graph = graph
    code = "optimizer = torch.optim.SGD(model.parameters(), lr=1.0)"
    rate = Finding(
        "learning-rate-too-low", "a", Severity.ERROR, "", fixes=(Fix("raise-learning-rate", "Raise.", code),)
    )
    whole = Finding("parameter-not-in-optimizer", "b", Severity.ERROR, "", fixes=(Fix("all-parameters", "Give all."),))
    report = Report("train.py", "sick", 3, findings=(rate, whole))
    found = try_fixes(report, recording, step, Places(step), (), Budget(120), lambda _: None)
    trials = {f.check: f.fixes[0].trial for f in found.findings}
    first, second = trials["learning-rate-too-low"], trials["parameter-not-in-optimizer"]
    assert first is not None
    assert second is not None
    assert (first.verdict, second.verdict) == (Verdict.CURED, Verdict.CURED)
    assert second.says == "raise-learning-rate in both arms, as it is needed too"
    assert second.control == pytest.approx(first.treated)


def test_what_no_copy_can_show_says_why() -> None:
    step, graph = trained(mlp(), lambda m, a, b: F.cross_entropy(m(a), b), *data())
    trial = tried(step, graph, "label-input-mismatch", "pair-again")
    assert trial.verdict is Verdict.COULD_NOT_RUN
    assert trial.says == "the true pairs are not in the captured batches"
    assert trial.control == trial.treated == ()
