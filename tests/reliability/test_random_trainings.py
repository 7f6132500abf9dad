"""Random small architectures of all layer kinds, with random faults: never a crash, always valid JSON, always restored."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netdoctor.judging import Options
from netdoctor.reportfile import from_dict
from netdoctor.session import Session
from tests.capture.observing import seed
from tests.capture.test_nothing_stays import differences, torch_as_it_is
from tests.reliability.architectures import FAULTS, LOSSES, drawn
from tests.reliability.faults import run
from tests.reliability.trainings import same


def examined(number: int, experiments: bool) -> None:
    """One random training: the same bits and errors, a valid report, no fault of ours, and torch as it was."""
    plan = drawn(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed(number)
        alone = run(plan)
        raised = list(plan.raised)
        before = torch_as_it_is()
        session = Session(Options(experiments=experiments, budget=1.0))
        seed(number)
        session.start()
        try:
            watched = run(plan)
        finally:
            session.stop()
        assert differences(before, torch_as_it_is()) == [], plan
        state = torch.get_rng_state()
        report = session.report()
        assert torch.equal(state, torch.get_rng_state()), plan
    assert same(alone, watched), plan
    assert plan.raised == raised, plan
    assert report.crashes == (), (plan, report.crashes)
    text = report.to_json()
    parsed = json.loads(text, parse_constant=pytest.fail)
    assert from_dict(parsed).verdict in ("sick", "healthy", "not observed")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**31))
def test_a_random_training(number: int) -> None:
    examined(number, experiments=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(60))
def test_a_random_training_with_experiments(number: int) -> None:
    examined(number, experiments=True)


def test_every_fault_and_every_loss_comes_up() -> None:
    plans = [drawn(number) for number in range(400)]
    assert {fault for plan in plans for fault in plan.faults} == set(FAULTS)
    assert {plan.loss for plan in plans} == set(LOSSES)


@pytest.mark.parametrize("number", [2, 3949])
def test_those_that_once_failed(number: int) -> None:
    """Layers that multiply a matrix by a vector; a model on the meta device beside one that breaks."""
    examined(number, experiments=False)
