from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.checks.experiments.cannot_overfit_tiny_batch import CannotOverfitTinyBatch
from netdoctor.finding import Abstention, Certainty, Finding, Severity
from netdoctor.recording import Series
from tests.checks.builders import Builder

RATES = ("0.01", "0.001", "0.0001")


def attempt(build: Builder, name: str, best: float, steps: int = 100, last: float | None = None, **facts) -> Builder:
    facts = {"kind": "classes", "start": 2.3, "best": best, "floor": 0.02, "samples": 16, "reached": False, **facts}
    losses = np.linspace(2.3, best if last is None else last, steps)
    return build.arm(f"overfit/{name}", losses, **facts)


def tried(best: float = 2.2, own: float | None = None, losses=2.3, **more) -> Builder:
    """The script's own optimizer and the sweep of Adam, all ending at `best`, on a run whose loss is `losses`."""
    build = Builder(60).loss(losses)
    attempt(build, "own", best if own is None else own, **more)
    for rate in RATES:
        attempt(build, f"adam {rate}", best, **more)
    return build


def judged(build) -> list:
    return list(CannotOverfitTinyBatch().judge(build.done()))


def test_no_setting_fits():
    (found,) = judged(tried(accuracy=0.2))
    assert found.severity is Severity.ERROR
    assert found.certainty is Certainty.MEASURED
    assert found.title == "a tiny batch cannot be fitted: 96 % of the loss is left at best"
    assert [e.quantity for e in found.evidence] == ["loss at best", "accuracy"]
    assert "16 samples, 4 settings of 100 steps" in found.explanation


def test_next_to_nothing_left_is_not_said_to_be_nothing():
    (found,) = judged(tried(best=0.03, accuracy=0.2))
    assert found.title == "a tiny batch cannot be fitted: its loss stays at 0.03, above the 0.02 that it can reach"


def test_a_loss_at_its_floor_is_not_said_to_be_above_it():
    """700 nodes of one graph cannot be made fewer: a few are still wrong when the loss is where it should be."""
    (said,) = judged(tried(best=0.02, accuracy=0.93))
    assert isinstance(said, Abstention)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"last": math.nan}, "NaN or Inf"),
        ({"best": 2.29, "last": 5.0}, "rises"),
        ({"best": 2.2, "constant": 2.25}, "constant prediction"),
        ({"best": 2.0, "constant": 2.25}, "then stops"),
    ],
)
def test_how_it_fails_is_said(more, says):
    (found,) = judged(tried(**more))
    assert says in found.explanation


def test_what_unblocks_it_is_named_and_proven():
    build = attempt(tried(), "without dropout", 0.01, reached=True)
    attempt(build, "without batchnorm", 2.2)
    attempt(build, "with matched initialisation", 0.01, reached=True)
    (found,) = judged(build)
    assert found.certainty is Certainty.PROVEN
    assert "without dropout and with matched initialisation" in found.explanation
    assert [fix.treatment for fix in found.fixes] == ["without dropout", "with matched initialisation"]


def test_fitting_by_the_own_optimizer_is_healthy():
    assert judged(attempt(tried(), "own", 0.01, reached=True)) == []


@pytest.mark.parametrize(("own", "losses", "fires"), [(2.25, 2.3, True), (2.0, 2.3, False), (2.25, "falls", False)])
def test_when_only_adam_fits_the_settings_are_to_blame(own, losses, fires):
    course = np.linspace(2.3, 1.0, 60) if losses == "falls" else losses
    build = attempt(tried(own=own, losses=course), "adam 0.001", 0.01, reached=True)
    found = judged(build)
    assert [f.severity for f in found] == [Severity.WARNING] * fires
    if fires:
        assert found[0].fixes[0].code == "optimizer = torch.optim.Adam(model.parameters(), lr=0.001)"


@pytest.mark.parametrize(("best", "drop", "severity"), [(1.1, 0.3, None), (1.3, 0.3, "warning"), (1.3, 0.8, None)])
def test_a_run_that_learns_is_doubted_only_when_the_copy_got_nowhere(best, drop, severity):
    found = judged(tried(best, losses=np.linspace(2.3, 2.3 * (1 - drop), 60)))
    assert [f.severity.value for f in found] == ([severity] if severity else [])


def test_a_run_that_learns_with_what_blocks_a_tiny_batch_is_fine():
    build = tried(2.0, losses=np.linspace(2.3, 1.5, 60))
    assert judged(attempt(build, "without dropout", 0.01, reached=True)) == []


@pytest.mark.parametrize(("best", "kind"), [(2.0, Abstention), (2.295, Finding)])
def test_a_loss_of_unknown_kind_must_not_fall_at_all(best, kind):
    (said,) = judged(tried(best, kind="other"))
    assert type(said) is kind


def test_a_policy_gradient_has_no_floor():
    (said,) = judged(tried(-0.8, kind="other", start=-0.7, losses=np.tile([-0.7, 0.4], 30)))
    assert isinstance(said, Abstention)


@pytest.mark.parametrize("fact", ["moving_target", "several_optimizers"])
def test_models_that_play_against_each_other_are_left_alone(fact):
    (said,) = judged(tried().facts(**{fact: True}))
    assert isinstance(said, Abstention)


@pytest.mark.parametrize(("steps", "kind"), [(49, Abstention), (50, Finding)])
def test_too_few_steps(steps, kind):
    (said,) = judged(tried(steps=steps))
    assert type(said) is kind


def test_without_the_sweep_it_abstains():
    (said,) = judged(attempt(Builder(60).loss(2.3), "own", 2.2))
    assert isinstance(said, Abstention)
    assert "a sweep" in said.reason


def test_without_experiments_it_abstains():
    (said,) = judged(Builder(60).loss(2.3))
    assert "experiments were off" in said.reason


def test_an_experiment_that_failed_gives_its_reason():
    (said,) = judged(Builder(60).arm("overfit/own", failure="numpy in between"))
    assert said == Abstention("cannot-overfit-tiny-batch", "numpy in between")


def test_a_regression_is_measured_from_its_floor():
    (found,) = judged(tried(1.16, kind="regression", constant=2.0, floor=0.02, losses=2.0))
    assert found.share == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("best", "differs", "kind"), [(0.03, True, Abstention), (0.03, False, Finding), (1.5, True, Finding)]
)
def test_a_model_that_samples_keeps_what_it_cannot_foresee(best, differs, kind):
    (found,) = judged(tried(best).arm("determinism/evaluation", [], differs=differs, share=0.1))
    assert isinstance(found, kind)


@pytest.mark.parametrize(("steps", "best", "kind"), [(2, 0.03, Abstention), (2, 1.5, Finding), (60, 0.03, Finding)])
def test_a_run_of_a_few_steps_whose_copy_lost_nearly_all(steps, best, kind):
    build = tried(best)
    series = build.recording.losses["loss"]
    build.recording.losses["loss"] = Series(series.steps[:steps], series.values[:steps])
    (found,) = judged(build)
    assert isinstance(found, kind)
