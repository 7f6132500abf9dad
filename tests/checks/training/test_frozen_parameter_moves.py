from __future__ import annotations

import pytest

from netdoctor.checks.training.frozen_parameter_moves import FrozenParameterMoves
from netdoctor.finding import Certainty, Finding, Severity, Verdict
from netdoctor.recording import Role, Stat
from tests.checks.builders import Builder, Curve


def recording(change: Curve | None) -> Builder:
    build = Builder(steps=40).linear("body", weight_rms=0.5, requires_grad=False).linear("head", weight_rms=0.5)
    build.optimizer("SGD", parameters=["body.weight", "head.weight"], line=9)
    return build if change is None else build.of_parameter("body.weight", Stat.FROZEN_UPDATE, change, Role.UPDATE)


def judged(build: Builder) -> list[Finding]:
    return list(FrozenParameterMoves().judge(build.done()))


def test_it_names_the_module_the_optimizer_and_the_first_step() -> None:
    (finding,) = judged(recording(lambda step: 0.001 if step >= 5 else 0.0))
    assert (finding.location.module, finding.location.line, finding.first_step) == ("body", 9, 5)
    assert finding.places == ("body.weight",)
    assert finding.evidence[0].measured == pytest.approx(0.002)


@pytest.mark.parametrize(("steps", "fires"), [(1, False), (2, True)])
def test_the_number_of_steps(steps: int, fires: bool) -> None:
    assert bool(judged(recording(lambda step: 1e-9 if step < steps else 0.0))) is fires


def test_silent_where_nothing_frozen_was_stepped_on_or_it_stayed() -> None:
    assert judged(recording(None)) == []
    assert judged(recording(0.0)) == []


# --- running statistics ----------------------------------------------------------------------------------------------


def norms(*drifts: float, now: float | None = None, kept: float = 0.1) -> Builder:
    build = Builder(steps=40).loss(lambda step: 2.1 * 0.9**step)
    for number, drift in enumerate(drifts):
        build.layer(f"body.{number}", "BatchNorm1d", line=5).event(20, "frozen norm", f"body.{number}", drift)
    if now is not None:
        build.arm("final/evaluation", [now, now]).arm("final/kept statistics", [kept, kept])
    return build


@pytest.mark.parametrize(("drift", "fires"), [(0.2, True), (0.199, False)])
def test_how_far_the_statistics_moved(drift: float, fires: bool) -> None:
    assert bool(judged(norms(drift))) is fires


def test_the_norm_that_moved_most_is_named() -> None:
    (finding,) = judged(norms(0.3, 2.0, 0.1))
    assert (finding.location.module, finding.location.line, finding.first_step) == ("body.1", 5, 20)
    assert finding.places == ("body.0", "body.1")
    assert (finding.severity, finding.certainty) == (Severity.WARNING, Certainty.MEASURED)
    assert finding.fixes[0].code.startswith("for module in body.modules():")
    assert finding.fixes[0].trial is None


@pytest.mark.parametrize(
    ("now", "kept", "hurt"),
    [
        (0.151, 0.1, True),  # 1.5 times, and 2.5 % of what was gained
        (0.149, 0.1, False),
        (0.045, 0.004, False),  # eleven times, and just below 2 % of what was gained
        (0.047, 0.004, True),
        (float("nan"), 0.1, True),
        (0.1, 0.1, False),
    ],
)
def test_what_it_does_to_the_task_of_before(now: float, kept: float, hurt: bool) -> None:
    (finding,) = judged(norms(0.5, now=now, kept=kept))
    assert finding.severity is (Severity.WARNING if hurt else Severity.ADVICE)
    trial = finding.fixes[0].trial
    assert (trial is not None and trial.verdict is Verdict.CURED) is hurt
