from __future__ import annotations

import pytest

from netdoctor.checks.training.frozen_parameter_moves import FrozenParameterMoves
from netdoctor.finding import Finding
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
