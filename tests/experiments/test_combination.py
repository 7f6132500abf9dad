"""Troubles with several causes: what is tried together, what each part adds, and what the tiny batch says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor import ranking
from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.combination import STEPS, Part, as_fix, combined, on_tiny_batch
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.treatment import Bench, Places, Treatment
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Certainty, Finding, Fix, Location, Severity, Verdict
from netdoctor.recording import Recording
from netdoctor.report import Report
from tests.experiments.capturing import captured

INIT = Fix("zero-bias", "Start the bias at 0.", "torch.nn.init.zeros_(model[0].bias)")
RATE = Fix("slower-decay", "Decay more slowly.")
IDLE = Fix("initialise", "No help.", "model[2].bias.mul_(1.0)")


def doubly_sick() -> TrainingStep:
    """A dead hidden layer, and a learning rate that is gone after two steps: either alone is enough to learn nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    nn.init.constant_(model[0].bias, -30.0)
    x = torch.randn(192, 6)
    y = (x[:, 0] > 0).long()

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for number in range(6):
            optimizer.param_groups[0]["lr"] = 0.01 * 0.01**number
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    return captured(train)


def finding(check: str, *fixes: Fix, symptoms: tuple[Finding, ...] = ()) -> Finding:
    return Finding(check, "title", Severity.ERROR, "why", Location(), fixes=fixes, symptoms=symptoms)


def tried(*findings: Finding, seconds: float = 60.0) -> Report:
    step = doubly_sick()
    report = Report("train.py", "sick", 6, findings=findings)
    recording = Recording(facts={"loss_lower_bound": 0.0})
    return try_fixes(report, recording, step, Places(step), (), Budget(seconds), lambda _: None)


def test_what_no_single_fix_cures_two_together_do() -> None:
    report = tried(finding("dead-relu", INIT), finding("lr-decays-too-fast", RATE))
    first, second = report.findings
    assert [fix.treatment for fix in first.fixes] == ["zero-bias + slower-decay", "zero-bias"]
    verdicts = [fix.trial.verdict for fix in first.fixes if fix.trial is not None]
    assert verdicts[0] is Verdict.CURED
    assert Verdict.CURED not in verdicts[1:]
    assert [f.certainty for f in report.findings] == [Certainty.PROVEN] * 2
    assert second.fixes[0].trial is not None
    assert second.fixes[0].trial.verdict is not Verdict.CURED
    assert "Start the bias at 0." in first.fixes[0].says
    assert "Decay more slowly." in first.fixes[0].says
    assert INIT.code in first.fixes[0].code


def test_a_part_that_adds_nothing_is_left_out() -> None:
    report = tried(
        finding("dead-relu", INIT), finding("poor-initialization", IDLE), finding("lr-decays-too-fast", RATE)
    )
    by_name = {f.check: f for f in report.findings}
    assert by_name["dead-relu"].fixes[0].treatment == "zero-bias + slower-decay"
    assert not by_name["poor-initialization"].apart
    assert by_name["lr-decays-too-fast"].apart


def test_a_symptom_that_is_needed_becomes_a_cause() -> None:
    decay = finding("lr-decays-too-fast", RATE)
    stuck = finding("loss-not-decreasing")
    report = tried(finding("dead-relu", INIT, symptoms=(decay, stuck)))
    assert [f.check for f in report.findings] == ["dead-relu", "lr-decays-too-fast"]
    assert [s.check for s in report.findings[0].symptoms] == ["loss-not-decreasing"]
    assert report.findings[1].certainty is Certainty.PROVEN


def test_a_symptom_that_no_script_can_have_of_its_own_is_not_tried() -> None:
    report = tried(finding("dead-relu", INIT, symptoms=(finding("loss-not-decreasing", RATE),)))
    assert [f.check for f in report.findings] == ["dead-relu"]
    assert all(" + " not in fix.treatment for fix in report.findings[0].fixes)


def test_a_cure_by_one_fix_asks_for_no_combination() -> None:
    both = finding("dead-relu", Fix("initialise", "Both.", "torch.nn.init.zeros_(model[0].bias)"))
    step = doubly_sick()
    steady = TrainingStep(step.iterations[:1], step.modules, step.leaves, step.optimizers, step.starts)
    report = try_fixes(
        Report("t", "sick", 6, findings=(both, finding("lr-decays-too-fast", RATE))),
        Recording(facts={"loss_lower_bound": 0.0}),
        steady,
        Places(steady),
        (),
        Budget(60),
        lambda _: None,
    )
    assert report.findings[0].fixes[0].trial is not None
    assert report.findings[0].fixes[0].trial.verdict is Verdict.CURED
    assert [fix.treatment for fix in report.findings[0].fixes] == ["initialise"]
    assert not any(row.name == "combined-treatment" for row in report.experiments)


def test_the_tiny_batch_tells_orders_of_magnitude() -> None:
    report = tried(finding("dead-relu", INIT), finding("lr-decays-too-fast", RATE))
    (row,) = [row for row in report.experiments if row.name == "combined-treatment"]
    assert row.verdict == "passed"
    assert "orders of magnitude lower" in row.says
    assert "zero-bias + slower-decay" in row.says


def test_the_tiny_batch_sees_the_scripts_own_rates() -> None:
    """Untreated, the weights stand still once the schedule has ended: the loss does not change any more."""
    step, recording = doubly_sick(), Recording()
    with quiet():
        row = on_tiny_batch(step, recording, Treatment(), "nothing", Budget(60))
    losses = recording.arms["combination/untreated"].losses
    assert row is not None
    assert row.verdict == "failed"
    assert len(losses) == STEPS
    assert losses[-1] == pytest.approx(losses[STEPS // 2], rel=1e-4)
    assert losses.tolist() == recording.arms["combination/treated"].losses.tolist()


def part(treatment: Treatment, check: str = "dead-relu") -> Part:
    return Part(finding(check), INIT, treatment)


def other_copy(step: TrainingStep) -> Sandbox:
    return Sandbox(step, lr_factor=0.1)


def test_treatments_that_each_want_a_copy_of_their_own_do_not_go_together() -> None:
    assert combined([part(Treatment(sandbox=other_copy)), part(Treatment(sandbox=other_copy))]) is None
    one = combined([part(Treatment(sandbox=other_copy, unit=2.0)), part(Treatment(unit=3.0))])
    assert one is not None
    assert one.sandbox is other_copy
    assert one.unit == 6.0


def test_changes_are_made_in_turn_and_batchnorm_stays() -> None:
    done: list[str] = []

    def note(name: str) -> Any:
        return lambda bench: done.append(name)

    hidden = part(Treatment(note("init"), both=note("bypass")), "batchnorm-masking")
    both = combined([hidden, part(Treatment(note("input"), both=note("both")))])
    assert both is not None
    step = doubly_sick()
    bench = Bench(Sandbox(step), step.iterations)
    both.both(bench)
    both.apply(bench)
    assert done == ["both", "init", "input"]


def test_the_fix_lists_its_parts() -> None:
    fix = as_fix([Part(finding("a"), INIT, Treatment()), Part(finding("b"), RATE, Treatment())])
    assert fix.treatment == "zero-bias + slower-decay"
    assert fix.says == "All of these together: (1) Start the bias at 0. (2) Decay more slowly."
    assert fix.code == f"# zero-bias\n{INIT.code}"


def test_no_budget_no_combination() -> None:
    before = finding("dead-relu", INIT), finding("lr-decays-too-fast", RATE)
    assert [f.fixes for f in tried(*before, seconds=0.0).findings] == [f.fixes for f in before]


def test_a_cause_apart_is_ranked_as_a_root() -> None:
    from netdoctor import catalogue

    checks = catalogue.all_checks()
    cause, below = finding("batchnorm-masking"), finding("lr-decays-too-fast")
    apart = Finding("lr-decays-too-fast", "title", Severity.ERROR, "why", apart=True)
    assert [f.check for f in ranking.rank([cause, below], checks)] == ["batchnorm-masking"]
    assert {f.check for f in ranking.rank([cause, apart], checks)} == {"batchnorm-masking", "lr-decays-too-fast"}
