"""Short of time: a lighter form of the step, and what is tried first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments import learning_rate, pace
from netdoctor.experiments.pace import ARM, is_slow, lighter, seconds_per_step, tiny_pace
from netdoctor.experiments.plan import FIRST_TRIALS, FOR_TRIALS, NO_TRIALS, ONE_TRIAL, conduct, kept_for_trials
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Severity, Verdict
from netdoctor.recording import Arm, Recording, Series
from netdoctor.report import Report
from tests.experiments.capturing import captured, fit

ZERO = Fix("zero-bias", "Start the bias at 0.", "torch.nn.init.zeros_(model[0].bias)")


def dead(size: int = 64) -> TrainingStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    nn.init.constant_(model[0].bias, -30.0)
    x = torch.randn(3 * size, 6)
    return fit(model, F.cross_entropy, x, (x[:, 0] > 0).long(), lambda p: torch.optim.SGD(p, lr=0.5), size=size)


def report(*fixes: Fix, severity: Severity = Severity.ERROR) -> Report:
    return Report("train.py", "sick", 3, findings=(Finding("dead-relu", "title", severity, "why", fixes=fixes),))


def test_a_step_is_timed_once() -> None:
    step = dead()
    first = seconds_per_step(step)
    assert 0 < first < 5
    assert step.pace == first == seconds_per_step(step)


def test_what_cannot_be_run_has_no_pace() -> None:
    step = dead()
    step.lost = "nothing was captured"
    assert seconds_per_step(step) == 0.0


def test_slow_is_what_does_not_fit() -> None:
    assert not is_slow(1.0, 2.0 * ARM)
    assert is_slow(1.0, 2.0 * ARM - 0.1)
    assert not is_slow(0.0, 0.1)


@pytest.mark.parametrize(("seconds", "samples"), [(100.0, 8), (0.5, 4)])
def test_the_lighter_step_holds_a_handful_of_samples(seconds: float, samples: int) -> None:
    few = lighter(dead(), 1.0, seconds)
    sizes = {c.shape[0] for c in _constants(few)}
    assert sizes == {samples}
    with quiet():
        assert len(Sandbox(few).run(few.iterations, 5, Budget(20)).losses) == 5


def _constants(step: TrainingStep) -> list[torch.Tensor]:
    from netdoctor.capture.tape import Constant, walk

    found: list[torch.Tensor] = []
    for entry in step.iterations[0].backwards[0].entries:
        walk((entry.args, entry.kwargs), lambda item: found.append(item.tensor) if isinstance(item, Constant) else None)
    return [tensor for tensor in found if tensor.dim() > 0]


def test_a_tiny_step_costs_its_share() -> None:
    assert tiny_pace(dead(64), 8.0) == pytest.approx(1.0)
    assert tiny_pace(dead(8), 8.0) == pytest.approx(8.0)


def test_a_slow_step_is_tried_on_few_samples_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    step = dead()
    step.pace = 10.0
    known = Recording(facts={"loss_lower_bound": 0.0})
    found = try_fixes(report(ZERO), known, step, Places(step), (), Budget(30), lambda _: None)
    trial = found.findings[0].fixes[0].trial
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert len(trial.treated) == len(trial.control) == pace.QUICK


def test_the_share_of_the_trials_follows_what_is_known() -> None:
    quick, slow = dead(), dead()
    quick.pace, slow.pace = 1e-3, 10.0
    assert kept_for_trials(quick, 60.0, lambda: report(ZERO)) == FOR_TRIALS
    assert kept_for_trials(slow, 60.0, lambda: report(ZERO)) == FIRST_TRIALS
    one = pytest.approx(pace.least_seconds(slow) / 60.0)
    assert NO_TRIALS < pace.least_seconds(slow) / 60.0 < ONE_TRIAL
    assert kept_for_trials(slow, 60.0, lambda: report(Fix("look-upstream", ""))) == one
    assert kept_for_trials(slow, 60.0, lambda: report(ZERO, severity=Severity.ADVICE)) == one
    assert kept_for_trials(slow, 60.0, lambda: Report("t", "healthy", 3)) == one
    assert kept_for_trials(slow, 6.0, lambda: Report("t", "healthy", 3)) == ONE_TRIAL
    assert kept_for_trials(slow, 60.0, lambda: report(Fix("lower-learning-rate", "Try less."))) == NO_TRIALS


def test_where_steps_are_slow_rates_come_first_and_overfitting_is_not_begun() -> None:
    step, said = dead(), []
    step.pace = 10.0
    recording = Recording(facts={"loss_lower_bound": 0.0})
    conduct(recording, step, 6.0, said.append)
    assert said[0] == "trying learning rates on few samples"
    assert "do not fit" in recording.arms["overfit/own"].failure
    assert len(recording.arms["trial/control"].losses) == pace.QUICK


def test_where_steps_are_slow_nothing_else_is_begun() -> None:
    """Everything else needs whole batches, and a single step of those would overdraw the budget."""
    step = dead()
    step.pace = 10.0
    recording = Recording(facts={"loss_lower_bound": 0.0})
    conduct(recording, step, 6.0, lambda _: None)
    assert {name.partition("/")[0] for name in recording.arms} == {"trial", "overfit"}


def test_likely_rates_come_first() -> None:
    """A loss that jumps asks for lower rates before higher ones."""
    jumped = Recording(losses={"loss": Series(np.arange(4), np.array([1.0, 9.0, 50.0, 80.0]))})
    assert learning_rate.likely(jumped)[:2] == (0.1, 0.01)
    assert learning_rate.likely(Recording()) == learning_rate.FACTORS


def test_the_trials_of_rates_answer_a_fix_of_the_rate() -> None:
    """Nothing is trained again where the experiments have had both arms."""
    step = dead()
    losses = {"control": np.full(12, 2.0), "lr x0.1": np.linspace(2.0, 0.1, 12)}
    arms = {f"trial/{n}": Arm(f"trial/{n}", v, facts={"ended": "finished"}) for n, v in losses.items()}
    known = Recording(facts={"loss_lower_bound": 0.0}, arms=arms)
    found = try_fixes(report(Fix("lower-lr", "Lower.")), known, step, Places(step), (), Budget(30), lambda _: None)
    trial = found.findings[0].fixes[0].trial
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert trial.treated == tuple(losses["lr x0.1"])


def test_a_rate_that_is_ahead_is_tried_for_longer() -> None:
    """A quadratic whose own rate makes it swing for ever; a tenth of it is slow and sure."""
    start = torch.tensor([1.0, 1.0])
    scales = torch.tensor([1.0, 0.004])

    def train() -> None:
        weights = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([weights], lr=1.95)
        for _ in range(24):
            optimizer.zero_grad()
            (scales * weights.square()).sum().mul(0.5).add(0.0).backward()
            optimizer.step()

    step, said = captured(train), list[str]()
    short = Recording()
    short.arms = learning_rate.trials(step, Budget(60.0), said.append)
    assert learning_rate.longer(Recording(), step, Budget(60.0), said.append) == {}
    losses = np.linspace(2.0, 1.6, 60)
    short.arms["trial/lr x0.1"] = Arm("trial/lr x0.1", losses)
    short.arms["trial/lr x0.01"] = Arm("trial/lr x0.01", np.full(60, 2.0))
    short.arms["trial/control"] = Arm("trial/control", np.full(60, 2.0))
    found = learning_rate.longer(short, step, Budget(60.0), said.append)
    assert set(found) == {"trial/control", "trial/lr x0.1"}
    assert all(arm.facts["longer"] and len(arm.losses) == 180 for arm in found.values())
    short.arms["trial/control"] = Arm("trial/control", np.linspace(2.0, 1.75, 60))  # nearly as far: no reason to go on
    assert learning_rate.longer(short, step, Budget(60.0), said.append) == {}
