"""Whole trials on captured trainings: what is tried, what is said, what is left alone, and that nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.errors import CannotReplayError
from netdoctor.experiments import trial as trials
from netdoctor.experiments.proposals import written_elsewhere
from netdoctor.experiments.sandbox import Budget, Sandbox
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import constant_loss, try_fixes
from netdoctor.finding import Certainty, Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Recording, Series
from netdoctor.report import Report
from netdoctor.session import examine
from tests.experiments.capturing import captured, fit
from tests.experiments.test_sandbox import Training

SGD: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
ZERO = Fix("zero-bias", "Start the bias at 0.", "torch.nn.init.zeros_(model[0].bias)")
DOUBLE = Fix("variance-scaling-init", "No help.", "torch.nn.init.kaiming_normal_(model[0].weight)")
HARM = Fix("initialise", "Harm.", "model[2].bias[0].fill_(1e4)")
LOOK = Fix("look-upstream", "Look.")


def dead() -> TrainingStep:
    """A hidden layer whose biases keep it at 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    nn.init.constant_(model[0].bias, -30.0)
    x = torch.randn(192, 6)
    return fit(model, F.cross_entropy, x, (x[:, 0] > 0).long(), SGD, steps=6)


def finding(*fixes: Fix, check: str = "dead-relu") -> Finding:
    return Finding(check, "title", Severity.ERROR, "why", Location(), fixes=fixes)


def recording(**facts: Any) -> Recording:
    return Recording(facts={"loss_lower_bound": 0.0, **facts})


def tried(step: TrainingStep, *findings: Finding, seconds: float = 60.0, **facts: Any) -> Report:
    report = Report("train.py", "sick", 6, findings=findings)
    return try_fixes(report, recording(**facts), step, Places(step), (), Budget(seconds), lambda _: None)


def verdicts(found: Finding) -> dict[str, Verdict | None]:
    return {fix.treatment: None if fix.trial is None else fix.trial.verdict for fix in found.fixes}


def test_fixes_are_ordered_by_what_they_did_and_a_cure_proves_the_finding() -> None:
    report = tried(dead(), finding(HARM, DOUBLE, ZERO, LOOK))
    assert list(verdicts(report.findings[0]).items()) == [
        ("zero-bias", Verdict.CURED),
        ("look-upstream", None),
        ("variance-scaling-init", Verdict.NO_EFFECT),
        ("initialise", Verdict.WORSE),
    ]
    assert report.findings[0].certainty is Certainty.PROVEN
    assert report.findings[0].fixes[-1].says == "Harm. On a copy this made it worse."
    assert report.crashes == ()
    assert report.experiments_s > 0


def test_the_arms_share_their_start_and_their_batches() -> None:
    """The control is what the sandbox does untreated; a treatment of the rate begins with the same loss."""
    step = dead()
    slower = Fix("lower-lr", "Slower.", "for group in optimizer.param_groups:\n    group['lr'] = 0.01")
    found = tried(step, finding(slower)).findings[0].fixes[0].trial
    assert found is not None
    untreated = Sandbox(step).run(step.iterations, trials.STEPS, Budget(60)).losses
    assert list(found.control) == untreated
    assert found.treated[0] == found.control[0]
    by_hand = Sandbox(step, lr_factor=0.1).run(step.iterations, trials.STEPS, Budget(60)).losses
    assert list(found.treated) == pytest.approx(by_hand)
    assert found.verdict is Verdict.NO_EFFECT


def test_without_a_cure_nothing_is_proven() -> None:
    report = tried(dead(), finding(DOUBLE))
    assert report.findings[0].certainty is Certainty.MEASURED


def test_a_healthy_control_cures_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(192, 6)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    step = fit(model, F.cross_entropy, x, (x[:, 0] > 0).long(), SGD, steps=6)
    found = tried(step, finding(ZERO, DOUBLE)).findings[0]
    assert Verdict.CURED not in verdicts(found).values()
    assert found.certainty is Certainty.MEASURED


def test_a_finding_with_a_trial_is_left_alone() -> None:
    known = replace(ZERO, trial=Trial(Verdict.EASED, (1.0,), (0.5,)))
    before = finding(DOUBLE, known)
    assert tried(dead(), before).findings == (before,)


def test_advice_is_not_tried() -> None:
    before = replace(finding(ZERO), severity=Severity.ADVICE)
    assert tried(dead(), before).findings == (before,)


def test_no_more_than_three_fixes_of_three_findings() -> None:
    names = ("dead-relu", "constant-layer", "saturated-activation", "vanishing-gradients")
    report = tried(dead(), *(finding(ZERO, DOUBLE, HARM, ZERO, check=name) for name in names))
    count = {f.check: sum(fix.trial is not None for fix in f.fixes) for f in report.findings}
    assert count == dict(zip(names, (3, 3, 3, 0), strict=True))


def test_no_budget_no_trial() -> None:
    before = finding(ZERO)
    assert tried(dead(), before, seconds=0.0).findings == (before,)


def test_a_proven_finding_rises() -> None:
    report = tried(dead(), finding(LOOK, check="aaa"), finding(ZERO, check="zzz"))
    assert [f.check for f in report.findings] == ["zzz", "aaa"]


def test_what_cannot_be_replayed_is_left_untried() -> None:
    step = dead()
    step.lost = "nothing was captured"
    before = finding(ZERO)
    report = tried(step, before)
    assert report.findings == (before,)
    assert report.crashes == ()


def test_a_fault_of_ours_is_reported_and_the_others_go_on() -> None:
    broken = Fix("initialise", "Wrong name.", "torch.nn.init.zeros_(model.nowhere.bias)")
    report = tried(dead(), finding(broken, ZERO))
    assert verdicts(report.findings[0]) == {"zero-bias": Verdict.CURED, "initialise": None}
    assert [crash.where for crash in report.crashes] == ["trial of initialise"]


def test_ctrl_c_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = Sandbox.run, []

    def interrupted(self: Sandbox, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # control, first treated arm, second treated arm
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Sandbox, "run", interrupted)
    report = tried(dead(), finding(ZERO, DOUBLE))
    assert verdicts(report.findings[0]) == {"zero-bias": Verdict.CURED, "variance-scaling-init": None}
    assert report.blind_spots == ("the trials of the fixes were interrupted",)


FIXES = [
    Fix("variance-scaling-init", "", "torch.nn.init.kaiming_normal_(model[0].weight)"),
    Fix("relu", "", ""),
    Fix("add-normalisation", ""),
    Fix("add-shortcuts", ""),
    Fix("clip-gradients", ""),
    Fix("lower-lr", ""),
    Fix("adam", "", "optimizer = torch.optim.Adam(model.parameters(), lr=0.001)"),
    Fix("clean-input", ""),
    Fix("standardise-input", ""),
    Fix("shuffle", ""),
    Fix("drop-minus-sign", ""),
    Fix("match-shapes", ""),
    Fix("train-mode", ""),
    Fix("all-parameters", ""),
    Fix("without dropout", ""),
    Fix("without batchnorm", ""),
]


@pytest.mark.parametrize("fix", FIXES, ids=lambda fix: fix.treatment)
@pytest.mark.parametrize("raising", [None, RuntimeError, KeyboardInterrupt])
def test_the_original_is_not_touched(
    fix: Fix, raising: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training()
    before = training.digest()
    if raising is not None:
        iterate = Sandbox.iterate

        def broken(self: Sandbox, *args: Any, **kwargs: Any) -> float:
            iterate(self, *args, **kwargs)
            raise raising

        monkeypatch.setattr(Sandbox, "iterate", broken)
    monkeypatch.setattr(trials, "STEPS", 10)
    tried(training.step, finding(fix))
    assert training.digest() == before


def test_the_loss_of_a_constant_prediction() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(96, 4), 5.0 + 2.0 * torch.randn(96, 1)
    step = fit(nn.Linear(4, 1), F.mse_loss, x, y, SGD)
    variances = [float(y[rows].double().var(correction=0)) for rows in (slice(0, 32), slice(32, 64), slice(64, 96))]
    assert constant_loss(step) == pytest.approx(float(np.median(variances)), rel=1e-5)


def test_a_loss_of_ones_own_has_no_constant() -> None:
    step = fit(nn.Linear(4, 1), lambda p, y: (p.exp() + y).logsumexp(0).sum(), torch.randn(96, 4), torch.ones(96, 1))
    assert constant_loss(step) is None


def overwritten(write: bool) -> tuple[TrainingStep, Recording]:
    """A loop that puts its weights back after each step, or does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    x = torch.randn(192, 6)
    y = (x[:, 0] > 0).long()
    losses: list[float] = []

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first = [p.detach().clone() for p in model.parameters()]
        for number in range(60):
            rows = slice(32 * (number % 6), 32 * (number % 6) + 32)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if write:
                with torch.no_grad():
                    for parameter, start in zip(model.parameters(), first, strict=True):
                        parameter.copy_(start)

    step = captured(train)
    series = Series(np.arange(len(losses)), np.asarray(losses))
    return step, Recording(losses={"loss": series}, facts={"loss_lower_bound": 0.0})


@pytest.mark.parametrize("write", [True, False])
def test_weights_that_something_else_writes(write: bool) -> None:
    step, seen = overwritten(write)
    run = Sandbox(step).run(step.iterations, 100, Budget(60))
    found = written_elsewhere(seen, step, run.losses)
    assert (found is not None) is write
    report = Report("train.py", "sick", 60, findings=(finding(check="loss-not-decreasing"),))
    report = try_fixes(report, seen, step, Places(step), (), Budget(60), lambda _: None)
    assert verdicts(report.findings[0]) == ({"leave-weights-alone": Verdict.CURED} if write else {})


def test_a_step_that_cannot_be_run_has_no_constant() -> None:
    step = dead()
    step.lost = "gone"
    with pytest.raises(CannotReplayError):
        constant_loss(step)


def test_the_report_of_an_examination_has_trials() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    nn.init.constant_(model[0].bias, -30.0)
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(300, 6)
    report = examine(model, F.cross_entropy, (x, (x[:, 0] > 0).long()), SGD(model.parameters()))
    top = report.findings[0]
    assert (top.check, top.certainty, top.fixes[0].treatment) == ("dead-relu", Certainty.PROVEN, "zero-bias")
    assert top.fixes[0].trial is not None
    assert top.fixes[0].trial.treated[-1] < 0.5 * top.fixes[0].trial.control[-1]
    assert all(torch.equal(p, start) for p, start in zip(model.parameters(), before, strict=True))
