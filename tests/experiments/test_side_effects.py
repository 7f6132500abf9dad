"""Units that die or saturate in the treated copy alone, and results that take the place of what went into a layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.side_effects import side_effects, units
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Location, Severity
from netdoctor.recording import Recording
from netdoctor.report import Report
from tests.experiments.capturing import fit

KILL = Fix("initialise", "Kills.", "torch.nn.init.constant_(model.first.bias, -30.0)")


class Two(nn.Module):
    """A ReLU inside of forward, and a sigmoid module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gate, self.last = (
            nn.Linear(6, 16),
            nn.Linear(16, 16),
            nn.Sigmoid(),
            nn.Linear(16, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        out: torch.Tensor = self.last(self.gate(self.second(hidden)) + x[:, :1])
        return out


def captured_step(model: nn.Module) -> TrainingStep:
    torch.manual_seed(0)
    x = torch.randn(192, 6)
    return fit(model, F.cross_entropy, x, (x[:, 0] > 0).long(), lambda p: torch.optim.SGD(p, lr=0.1), steps=6)


def looked(model: nn.Module) -> dict[str, tuple[float, float]]:
    step = captured_step(model)
    with quiet():
        return units(Bench(Sandbox(step), step.iterations))


def test_dead_and_saturated_units_are_seen_in_modules_and_functions() -> None:
    torch.manual_seed(0)
    model = Two()
    healthy = looked(model)
    assert set(healthy) == {"the model (relu)", "gate (sigmoid)"}
    assert healthy["the model (relu)"][0] < 0.2
    assert healthy["gate (sigmoid)"][1] == 0.0
    nn.init.constant_(model.first.bias, -30.0)
    nn.init.constant_(model.second.bias, 20.0)
    assert looked(model) == {"the model (relu)": (1.0, 0.0), "gate (sigmoid)": (0.0, 1.0)}


def test_looking_leaves_no_hooks() -> None:
    step = captured_step(Two())
    with quiet():
        bench = Bench(Sandbox(step), step.iterations)
        units(bench)
    left = [m for top in bench.sandbox.modules() for m in top.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert left == []


FALLS = [1.0 - 0.01 * n for n in range(60)]


@pytest.mark.parametrize(
    ("control", "treated", "count"), [(0.19, 0.5, 1), (0.2, 0.5, 0), (0.19, 0.49, 0), (0.9, 1.0, 0)]
)
def test_only_what_the_control_does_not_have_counts(control: float, treated: float, count: int) -> None:
    dead = side_effects({"a (relu)": (control, 0.0)}, {"a (relu)": (treated, 0.0)}, FALLS)
    saturated = side_effects({"a (tanh)": (0.0, control)}, {"a (tanh)": (0.0, treated)}, FALLS)
    assert (len(dead), len(saturated)) == (count, count)


def test_a_loss_that_rises_is_told() -> None:
    assert side_effects({}, {}, FALLS[::-1]) == ("its loss rises in the end",)
    assert side_effects({}, {}, FALLS) == ()


def test_a_trial_carries_them_to_the_report() -> None:
    torch.manual_seed(0)
    step = captured_step(Two())
    finding = Finding("poor-initialization", "title", Severity.ERROR, "why", Location(), fixes=(KILL,))
    report = Report("train.py", "sick", 6, findings=(finding,))
    known = Recording(facts={"loss_lower_bound": 0.0})
    fix = try_fixes(report, known, step, Places(step), (), Budget(60), lambda _: None).findings[0].fixes[0]
    assert fix.trial is not None
    assert fix.trial.side_effects == ("100 % of the units of the model (relu) end dead",)
    assert "Side effect on the copy: 100 % of the units" in fix.says
    again = report.__class__("t", "sick", 6, findings=(Finding("a", "b", Severity.ERROR, "c", fixes=(fix,)),)).to_dict()
    assert again["findings"][0]["fixes"][0]["trial"]["side_effects"] == list(fix.trial.side_effects)


class Dropped(nn.Module):
    """Computes `mixed` and goes on with `hidden`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.mix = nn.Linear(16, width)
        self.out = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.embed(x))
        self.mix(hidden)
        out: torch.Tensor = self.out(hidden)
        return out


def case(step: TrainingStep) -> Case:
    found = Finding("no-gradient", "title", Severity.WARNING, "why", Location("mix"))
    return Case(step, Recording(), found, Fix("use-or-remove", ""), Places(step))


def test_a_dropped_result_is_put_to_use() -> None:
    torch.manual_seed(0)
    model = Dropped()
    step = captured_step(model)
    made = treatment_of(case(step))
    assert made is not None
    with quiet():
        bench = Bench(made.sandbox(step), step.iterations)
        with bench.stack:
            made.apply(bench)
            loss = bench.sandbox.iterate(step.iterations[0])
    copied = step.copies().of(model)
    torch.manual_seed(0)
    x = torch.randn(192, 6)[:32]
    expected = F.cross_entropy(copied.out(copied.mix(torch.relu(copied.embed(x)))), (x[:, 0] > 0).long())
    assert loss == pytest.approx(expected.item())


def test_a_result_of_another_shape_cannot_be_put_to_use() -> None:
    assert treatment_of(case(captured_step(Dropped(width=5)))) is None


def test_a_result_that_is_used_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    found = Finding("no-gradient", "title", Severity.WARNING, "why", Location("0"))
    step = captured_step(model)
    assert treatment_of(Case(step, Recording(), found, Fix("use-or-remove", ""), Places(step))) is None
