"""Trials of giving unfrozen parameters to the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Recording
from netdoctor.report import Report
from tests.experiments.capturing import captured

BODY = ("0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias")
ALONE = ("0.weight", "0.bias", "2.weight", "2.bias")  # where the body is called by itself
STAGE, LATER = 30, 60
Forward = Callable[[nn.Sequential, Tensor], Tensor]


def whole(model: nn.Sequential, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


def without_grad(model: nn.Sequential, x: Tensor) -> Tensor:
    with torch.no_grad():
        features = model[0](x)
    out: Tensor = model[1](features)
    return out


def trained(first: Forward = whole, after: Forward = whole, learnable: bool = True) -> TrainingStep:
    """A head on a frozen body, then both, by an optimizer that holds the head."""
    torch.manual_seed(0)
    x = torch.randn(2048, 8)
    y = (x[:, 0] * x[:, 1] > 0).long() if learnable else torch.randint(0, 2, (len(x),))
    body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh())
    model = nn.Sequential(body, nn.Linear(16, 2))

    def train() -> None:
        body.requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for number in range(STAGE + LATER):
            body.requires_grad_(number >= STAGE)
            rows = torch.randint(0, len(x), (32,))
            loss = F.cross_entropy((first if number < STAGE else after)(model, x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return captured(train)


def tried(step: TrainingStep, places: tuple[str, ...] = BODY) -> Trial | None:
    fix = Fix("hold-unfrozen", "")
    found = Finding(
        "parameter-not-in-optimizer", "t", Severity.ERROR, "w", Location(), fixes=(fix,), places=places, first_step=0
    )
    report = Report("train.py", "sick", STAGE + LATER, findings=(found,))
    known = Recording(facts={"loss_lower_bound": 0.0}, steps=STAGE + LATER)
    made = try_fixes(report, known, step, Places(step), (), Budget(60), lambda _: None)
    assert made.crashes == ()
    return made.findings[0].fixes[0].trial


def test_the_training_goes_on_with_them() -> None:
    step = trained()
    before = [p.clone() for module in step.modules for p in module.parameters()]
    trial = tried(step)
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert trial.treated[-1] < 0.5 * trial.control[-1]
    assert trial.says == "the trained weights as the start"
    after = [p for module in step.modules for p in module.parameters()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_where_the_part_without_gradient_was_captured_first_the_later_one_tells() -> None:
    trial = tried(trained(without_grad), ALONE)
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert trial.says == f"the training from step {STAGE} on"


def test_where_no_gradient_comes_to_them_it_is_told_as_untried() -> None:
    trial = tried(trained(without_grad, without_grad), ALONE)
    assert trial is not None
    assert trial.verdict is Verdict.COULD_NOT_RUN
    assert "without them" in trial.says


def test_a_body_that_is_not_needed() -> None:
    """Labels at random: there is nothing that the body could add."""
    trial = tried(trained(learnable=False))
    assert trial is not None
    assert trial.verdict in (Verdict.NO_EFFECT, Verdict.NOT_REPRODUCED)


@pytest.mark.parametrize("places", [(), ("9.weight",)])
def test_parameters_that_are_not_known(places: tuple[str, ...]) -> None:
    trial = tried(trained(), places)
    assert trial is None or trial.verdict is Verdict.COULD_NOT_RUN
