from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.data.misaligned_targets import MisalignedTargets
from netdoctor.checks.data.turned import ASSIGNED, SHUFFLED, TRUE, TURNED
from netdoctor.finding import Abstention, Certainty, Finding, Severity, Verdict
from tests.checks.builders import Builder


def curve(end: float, steps: int) -> np.ndarray:
    return np.concatenate([[max(end, 1.0)], np.full(steps - 1, end)])


def recording(
    assigned: float,
    true: float = 1.0,
    shuffled: float | None = None,
    turned: float | None = None,
    steps: int = 72,
    **given: object,
) -> Builder:
    facts = {"others": 0.75, "fits": 0.31, "common": "as it is", "file": "train.py", "line": 9.0, "text": "crit(x, m)"}
    build = Builder().arm(ASSIGNED, curve(assigned, steps), **(facts | given)).arm(TRUE, curve(true, steps))
    for name, end in ((SHUFFLED, shuffled), (TURNED, turned)):
        if end is not None:
            build.arm(name, curve(end, steps))
    return build


def judged(build: Builder) -> list[Finding | Abstention]:
    return list(MisalignedTargets().judge(build.done()))


def test_targets_turned_by_themselves() -> None:
    (finding,) = judged(recording(0.2, 1.0, 0.8))
    assert isinstance(finding, Finding)
    assert (finding.severity, finding.certainty) == (Severity.ERROR, Certainty.MEASURED)
    assert finding.location.line == 9
    assert "75 %" in finding.title
    assert finding.fixes[0].treatment == "one-draw-for-both"


@pytest.mark.parametrize(("how", "code"), [("transposed", "transpose(-2, -1)"), ("mirrored upside down", "flip(-2)")])
def test_all_targets_turned_by_one_way(how: str, code: str) -> None:
    (finding,) = judged(recording(0.3, turned=0.2, common=how, fits=0.95))
    assert isinstance(finding, Finding)
    assert how in finding.title
    assert finding.certainty is Certainty.PROVEN
    assert code in finding.fixes[0].code
    assert finding.fixes[0].trial is not None
    assert finding.fixes[0].trial.treated[-1] == 0.2


@pytest.mark.parametrize(("level", "fires"), [(0.69, True), (0.7, True), (0.71, False)])
def test_the_limit_of_the_loss(level: float, fires: bool) -> None:
    assert bool(judged(recording(level, 1.0, 1.0))) is fires
    assert bool(judged(recording(level, 2.0, 1.0))) is fires  # the lower of the two counts
    assert bool(judged(recording(level, 1.0, 2.0))) is fires
    assert bool(judged(recording(0.1, 1.0, turned=level))) is fires


@pytest.mark.parametrize(("others", "fires"), [(0.19, False), (0.2, True)])
def test_the_limit_of_the_samples(others: float, fires: bool) -> None:
    assert bool(judged(recording(0.2, 1.0, 0.8, others=others))) is fires


def test_a_gain_that_is_no_half_is_measured() -> None:
    (finding,) = judged(recording(0.6, 1.0, 1.0))
    assert isinstance(finding, Finding)
    assert finding.certainty is Certainty.MEASURED
    assert finding.fixes[0].trial is not None
    assert finding.fixes[0].trial.verdict is Verdict.EASED


@pytest.mark.parametrize(
    "build", [recording(0.2, 1.0, 0.8, steps=23), recording(0.2), recording(0.2).arm(ASSIGNED, failure="no")]
)
def test_too_short_or_failed_is_an_abstention(build: Builder) -> None:
    (abstention,) = judged(build)
    assert isinstance(abstention, Abstention)


def test_silent_without_arms_and_where_a_loss_can_be_negative() -> None:
    assert judged(Builder()) == []
    assert judged(recording(-2.0, 1.0, 1.0)) == []
    assert judged(recording(0.2, 1.0, 0.8, steps=24))
