from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from netdoctor import catalogue
from netdoctor.check import Check
from netdoctor.diagnosis import diagnose, experiments
from netdoctor.finding import Abstention, Finding, Location, Severity, spelled
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Fault, Header, Recording
from netdoctor.report import Crash, Experiment
from tests.checks.builders import Builder


@dataclass(frozen=True)
class Says(Check):
    """A check that gives what `what` returns."""

    what: Callable[[Recording], Any] = lambda recording: []

    def judge(self, recording: Recording) -> Any:
        return self.what(recording)


PARTS = (4, 0), (5, 80)  # lines, and the steps in which they first ran


def check(name: str, *items: Any, explains: tuple[str, ...] = ()) -> Check:
    return type(name, (Says,), {"name": name, "explains": frozenset(explains)})(lambda recording: iter(items))


def calling(name: str, what: Callable[[Recording], Any]) -> Check:
    return type(name, (Says,), {"name": name})(what)


def finding(name: str = "a", severity: Severity = Severity.ERROR, module: str | None = None) -> Finding:
    return Finding(name, "t", severity, "e", Location(module=module))


def seen() -> Recording:
    return Builder(5).each_step("backward", "step").done()


def test_findings_abstentions_and_passed_checks_are_sorted():
    checks = [check("a", finding()), check("b", Abstention("b", "too short")), check("d"), check("c")]
    report = diagnose(seen(), checks)
    assert [f.check for f in report.findings] == ["a"]
    assert report.abstentions == (Abstention("b", "too short"),)
    assert report.passed == ("c", "d")
    assert report.verdict == "sick"


def test_the_same_thing_at_the_same_place_is_said_once():
    """L-BFGS evaluates its closure, and so the same wrong line, several times in a step."""
    report = diagnose(seen(), [check("a", finding(), finding(), finding(module="x"))])
    assert sorted(str(f.location.module) for f in report.findings) == ["None", "x"]


@pytest.mark.parametrize(("line", "step", "dated"), [(5, 0, 80), (4, 0, 0), (6, 0, 0), (5, 3, 3), (5, None, None)])
def test_what_stands_on_a_line_of_a_later_graph_begins_there(line, step, dated):
    """A check of graphs says step 0; a step that is known otherwise stays."""
    recording = seen()
    first, later = (
        StepGraph([Operation(0, "relu", "", "", (), (), {}, 0, "t.py", n)], [], None, at) for n, at in PARTS
    )
    recording.graph, recording.graphs = first, [first, later]
    (found,) = diagnose(
        recording, [check("a", replace(finding(), location=Location(file="t.py", line=line, step=step)))]
    ).findings
    assert found.location.step == dated
    assert (found.first_step == 80) is (dated == 80)


def test_findings_are_ranked():
    report = diagnose(seen(), [check("b", finding("b")), check("a", finding("a"), explains=("b",))])
    assert [(f.check, len(f.symptoms)) for f in report.findings] == [("a", 1)]


@pytest.mark.parametrize(
    ("recording", "items", "verdict"),
    [
        (seen(), [], "healthy"),
        (seen(), [finding(severity=Severity.ADVICE)], "healthy"),
        (seen(), [finding(severity=Severity.WARNING)], "sick"),
        (Recording(), [], "not observed"),
        (Recording(), [finding()], "sick"),
    ],
)
def test_the_verdict(recording, items, verdict):
    assert diagnose(recording, [check("a", *items)]).verdict == verdict


def test_what_was_not_observed_did_not_pass():
    assert diagnose(Recording(), [check("a")]).passed == ()


def test_a_crash_is_a_row_and_the_others_go_on():
    def halfway(recording):
        yield finding("wrong name")
        raise ZeroDivisionError("by nought")

    report = diagnose(seen(), [calling("broken", halfway), check("a", finding())])
    assert sorted(f.check for f in report.findings) == ["a", "broken"]
    (crash,) = report.crashes
    assert crash.where == "broken"
    assert crash.error.startswith("ZeroDivisionError: by nought (")
    assert "test_diagnosis.py:" in crash.error
    assert report.passed == ()


@pytest.mark.parametrize("what", [lambda r: None, lambda r: ["text"], lambda r: 1 / 0])
def test_a_check_that_breaks_its_contract_crashes_alone(what):
    report = diagnose(seen(), [calling("broken", what)])
    assert [crash.where for crash in report.crashes] == ["broken"]


def test_an_interrupt_is_not_swallowed():
    def interrupted(recording):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(seen(), [calling("a", interrupted)])


def test_warnings_of_numbers_stay_inside():
    report = diagnose(seen(), [calling("a", lambda r: iter([finding()] * int(np.isnan(np.float64(0) / 0))))])
    assert len(report.findings) == 1
    assert report.crashes == ()


def test_ignored_findings_make_nothing_sick():
    report = diagnose(seen(), [check("a", finding(module="body.1"), finding(module="head"))], ["a:body.*"])
    assert [f.location.module for f in report.findings] == ["head"]
    assert [f.location.module for f in report.ignored] == ["body.1"]
    assert diagnose(seen(), [check("a", finding(module="body.1"))], ["a:body.*"]).verdict == "healthy"


def test_findings_outside_of_the_selected_layers_are_listed_apart():
    report = diagnose(seen(), [check("a", finding(module="body.1"), finding(module="head"))], select=["a:head"])
    assert [f.location.module for f in report.findings] == ["head"]
    assert len(report.ignored) == 1


def test_the_header_faults_and_losses_are_carried_over(monkeypatch):
    recording = Builder(5).loss(lambda s: 2.0 - s / 10).arm("trial/control", [1.0]).done()
    recording.header = Header("train.py", "0.1", "2.13", ended="interrupted", observing_s=0.5)
    recording.faults = [Fault("hook", "TypeError: x"), Fault("tap", "ValueError: y", 3)]
    recording.blind_spots = ["compiled model"]
    monkeypatch.setattr(catalogue, "crashes", lambda: (Crash("plugin", "ImportError"),))
    report = diagnose(recording, [])
    assert (report.target, report.netdoctor, report.torch, report.ended) == ("train.py", "0.1", "2.13", "interrupted")
    assert (report.steps, report.observing_s, report.blind_spots) == (5, 0.5, ("compiled model",))
    assert report.losses == {"loss": (2.0, 1.6)}
    assert [c.where for c in report.crashes] == ["plugin", "hook", "tap"]
    assert report.crashes[2].error == "ValueError: y (3 times)"
    assert diagnose(recording, [], crashes=()).crashes[0].where == "hook"


def overfit(builder: Builder, name: str, **facts: Any) -> Builder:
    facts = {"kind": "classes", "start": 2.3, "best": 2.2, "floor": 0.05, "samples": 16, "reached": False, **facts}
    return builder.arm(f"overfit/{name}", np.linspace(2.3, facts["best"], 100), **facts)


def test_overfitting_in_words():
    build = overfit(Builder(5).optimizer("SGD"), "own", reached=True, best=0.01, lr=0.1)
    (said,) = experiments(build.done())
    assert said == Experiment(
        "overfit-tiny-batch", "passed", "16 samples fitted: loss 2.3 → 0.01 in 100 steps with SGD at 0.1"
    )
    (said,) = experiments(overfit(overfit(Builder(5), "own"), "adam 0.001", reached=True, best=0.02).done())
    assert said.verdict == "passed"
    assert "Adam at 0.001; the script's own optimizer only reached 2.2" in said.says
    (said,) = experiments(overfit(overfit(Builder(5), "own"), "adam 0.001", best=2.1).done())
    assert said.verdict == "failed"
    assert "2.3 → 2.1 in 100 steps with Adam at 0.001, the best of 2 optimizer settings" in said.says
    (said,) = experiments(Builder(5).arm("overfit/own", failure="numpy in between").done())
    assert said == Experiment("overfit-tiny-batch", "could not run", "numpy in between")


def test_learning_rate_trials_in_words():
    build = Builder(5).arm("trial/control", [2.3, 2.3, 2.3]).arm("trial/lr x0.1", [2.3, 1.0, 0.5])
    (said,) = experiments(build.done())
    assert said == Experiment(
        "learning-rate-trials", "failed", "as it is: loss 2.3 → 2.3 in 3 steps; lr ×0.1: loss 2.3 → 0.5 in 3 steps"
    )
    (said,) = experiments(build.arm("trial/control", [2.3, 1.0, 0.9]).done())
    assert said.verdict == "passed"
    (said,) = experiments(Builder(5).arm("trial/control", failure="cannot copy").done())
    assert (said.verdict, said.says) == ("could not run", "cannot copy")
    (said,) = experiments(build.arm("trial/control", [2.3, float("nan")]).done())
    assert said.verdict == "failed"


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"finite": True, "forward_decades": 2.9, "backward_decades": -1.0}, "passed"),
        ({"finite": True, "forward_decades": 1.0, "backward_decades": -3.1}, "failed"),
        ({"finite": False}, "failed"),
    ],
)
def test_bypassing_batchnorm_in_words(facts, verdict):
    (said,) = experiments(Builder(5).arm("batchnorm/with").arm("batchnorm/bypassed", **facts).done())
    assert (said.name, said.verdict) == ("batchnorm-bypass", verdict)


def test_any_other_experiment_speaks_for_itself():
    build = Builder(5).arm("leakage", verdict="failed", says="sample 3 sees sample 1").arm("inputs", failure="x")
    rows = list(experiments(build.arm("shuffled/pairs", [2.0, 1.0]).done()))
    assert rows[0] == Experiment("leakage", "failed", "sample 3 sees sample 1")
    assert rows[1] == Experiment("inputs", "could not run", "x")
    assert rows[2] == Experiment("shuffled/pairs", "passed", "loss 2 → 1 in 2 steps")


def test_numbers_of_prose_are_written_as_they_are_read() -> None:
    assert spelled("2.32e+03, 1e-05 and 5e+07; 4e+00") == "2320, 1e-5 and 5e7; 4"
    assert spelled("v1e+03, 1e-05x, 12, 0.5 and 1.0e-30") == "v1e+03, 1e-05x, 12, 0.5 and 1.0e-30"
