from __future__ import annotations

import pytest

from netdoctor.checks.processes.rank_desync import RankDesync
from netdoctor.finding import Finding
from tests.checks.builders import Builder


def judged(by: float = 1e-2, samples: int = 5, calls: int = 20) -> list[Finding]:
    build = Builder(steps=20).linear("0").optimizer("SGD", lr=0.1)
    build.event(0, "ddp", "", 0.0, line=7).event(0, "backward", "", 0.0, line=9)
    facts = {"ranks_differ_by": by, "ranks_differ_samples": float(samples), "ranks_differ_step": 3.0}
    return list(RankDesync().judge(build.facts(**facts, ranks_differ_parameter="0.weight", ddp_calls=calls).done()))


def test_it_names_the_parameter_and_the_step() -> None:
    (finding,) = judged()
    assert "0.weight after step 3" in finding.title
    assert (finding.location.line, finding.location.step) == (7, 3)
    assert "broadcast" in finding.fixes[0].code


def test_a_model_called_past_its_wrapper() -> None:
    (finding,) = judged(calls=0)
    assert finding.location.line == 9
    assert "model.module" in finding.fixes[0].code


@pytest.mark.parametrize(("by", "fires"), [(1e-6, False), (1e-5, False), (2e-5, True), (float("inf"), True)])
def test_the_limit_of_rounding(by: float, fires: bool) -> None:
    assert bool(judged(by)) is fires


@pytest.mark.parametrize(("samples", "fires"), [(1, False), (2, True)])
def test_one_difference_is_none(samples: int, fires: bool) -> None:
    assert bool(judged(samples=samples)) is fires


def test_one_process() -> None:
    assert list(RankDesync().judge(Builder(steps=20).linear("0").optimizer("SGD", lr=0.1).done())) == []
