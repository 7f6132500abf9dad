from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.numerics.half_precision_underflow import ARM, HalfPrecisionUnderflow, _scaled
from netdoctor.finding import Abstention, Certainty, Finding
from tests.checks.builders import Builder


def recording(lost: float) -> Builder:
    return Builder().event(0, "backward", line=21).arm(ARM, lost=lost, worst=min(1.0, 2 * lost), entries=1000.0)


def judged(build: Builder) -> list[Finding | Abstention]:
    return list(HalfPrecisionUnderflow().judge(build.done()))


@pytest.mark.parametrize(("lost", "fires"), [(0.09, False), (0.1, True)])
def test_the_share_that_only_a_scaled_loss_has(lost: float, fires: bool) -> None:
    assert bool(judged(recording(lost))) is fires


def test_it_shows_how_to_scale() -> None:
    (finding,) = judged(recording(0.3))
    assert isinstance(finding, Finding)
    assert (finding.location.line, finding.certainty) == (21, Certainty.PROVEN)
    assert "scaler.scale(loss).backward()" in finding.fixes[0].code


def test_the_scaler_is_for_the_device_and_one_that_does_not_scale_is_replaced() -> None:
    build = recording(0.3)
    build.recording.header = replace(build.recording.header, device="cuda:1")
    (finding,) = judged(build)
    assert isinstance(finding, Finding)
    assert finding.fixes[0].code.startswith('scaler = torch.amp.GradScaler("cuda")')
    assert _scaled("grad_scaler.scale(loss)", "optimizer", "cpu").startswith(
        'grad_scaler = torch.amp.GradScaler("cpu")'
    )


def test_it_abstains_where_the_copy_could_not_run_and_is_silent_without_it() -> None:
    assert judged(Builder().arm(ARM, failure="no copy")) == [Abstention("half-precision-underflow", "no copy")]
    assert judged(Builder()) == []
