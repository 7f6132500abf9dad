from __future__ import annotations

import pytest

from netdoctor.checks.training.missing_optimizer_step import MissingOptimizerStep
from netdoctor.finding import Severity
from tests.checks.builders import Builder


def run(backwards: int = 20, **facts) -> Builder:
    build = Builder(0).optimizer("Adam", line=7).count("backward", backwards)
    return build.facts(**{"parameters_changed": False, **facts})


def judged(build) -> list:
    return list(MissingOptimizerStep().judge(build.done()))


def test_backwards_without_a_step_are_an_error():
    (found,) = judged(run())
    assert found.severity is Severity.ERROR
    assert found.title == "20 backward passes and not one optimizer step"
    assert found.fixes[0].code == "loss.backward()\noptimizer.step()"


@pytest.mark.parametrize(("backwards", "fires"), [(7, False), (8, True)])
def test_an_accumulation_cycle_may_not_be_over(backwards, fires):
    assert bool(judged(run(backwards))) is fires


@pytest.mark.parametrize("kind", ["step", "scaler-skip"])
def test_a_step_taken_or_skipped_clears_it(kind):
    assert judged(run().count(kind, 1)) == []


def test_parameters_that_move_are_updated_by_hand():
    assert judged(run(parameters_changed=True)) == []


def test_without_knowing_it_stays_silent():
    build = run()
    build.recording.facts.clear()
    assert judged(build) == []


def test_saliency_maps_need_no_step():
    build = run()
    build.recording.optimizers.clear()
    assert judged(build) == []
