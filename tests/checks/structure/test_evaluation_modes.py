"""train-mode-in-eval, nondeterministic-eval, dropout-too-high, batchnorm-tiny-batch and batchnorm-drift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netdoctor.checks.structure.batchnorm_drift import BatchnormDrift
from netdoctor.checks.structure.batchnorm_tiny_batch import BatchnormTinyBatch
from netdoctor.checks.structure.dropout_too_high import DropoutTooHigh
from netdoctor.checks.structure.nondeterministic_eval import NondeterministicEval
from netdoctor.checks.structure.train_mode_in_eval import TrainModeInEval
from netdoctor.data import Evaluation, Override
from netdoctor.finding import Abstention, Severity
from netdoctor.trend import NO_BETTER, judge
from tests.checks.structure.models import BATCH, Model, judged

LEARNS = lambda step: 2.3 * 0.9**step + 0.05  # noqa: E731
STUCK = lambda step: 2.3 + 0.01 * np.sin(7.0 * step)  # noqa: E731


def evaluated(passes: int, train_mode: int, layers: tuple[str, ...] = ("drop",), **fields: Any) -> Model:
    build = Model()
    seen = Evaluation(np.arange(3), np.ones(3), 3, passes, train_mode, layers, file="train.py", line=40, **fields)
    build.recording.evaluations = [seen]
    return build


@pytest.mark.parametrize(
    ("passes", "train_mode", "fires"), [(10, 5, True), (10, 4, False), (1, 1, True), (1, 0, False)]
)
def test_most_passes_of_a_line_in_training_mode(passes, train_mode, fires):
    found = judged(TrainModeInEval(), evaluated(passes, train_mode))
    assert [(f.severity, f.location.line, f.location.module) for f in found] == (
        [(Severity.WARNING, 40, "drop")] if fires else []
    )


def test_a_method_that_does_not_pass_the_mode_on_is_the_place():
    override = Override("Net.train", "model.py", 7, "super().train()")
    (found,) = judged(TrainModeInEval(), evaluated(10, 10, override=override))
    assert (found.location.file, found.location.line) == ("model.py", 7)
    assert found.title.endswith("though eval() was called")
    assert "Net.train does not pass on the mode" in found.explanation
    assert found.fixes[0].code.startswith("def train(self, mode=True):\n    super().train(mode)")


@pytest.mark.parametrize(("repeated", "severity"), [(4, Severity.WARNING), (5, Severity.ADVICE)])
def test_the_same_batch_again_and_again_is_a_sampling(repeated, severity):
    assert [f.severity for f in judged(TrainModeInEval(), evaluated(10, 10, repeated=repeated))] == [severity]


@pytest.mark.parametrize(
    ("options", "fires"),
    [({"p": 0.3, "training": True}, True), ({"p": 0.3, "training": False}, False), ({"p": 0.0}, False)],
)
def test_functional_dropouts_of_the_captured_step_count(options, fires):
    build = evaluated(4, 4, ())
    hidden = build.run(build.value((BATCH, 16)), "body")
    build.compare(build.operation("dropout", hidden, module="net", **options))
    assert bool(judged(TrainModeInEval(), build)) is fires


@pytest.mark.parametrize(
    ("family", "fires"), [("cross_entropy", True), ("bce", True), ("custom", False), ("mse", False)]
)
def test_without_a_loss_only_the_accuracy_of_a_classifier_counts(family, fires):
    build = evaluated(4, 4).facts(loss_family=family)
    build.recording.evaluations = [replace(build.recording.evaluations[0], losses=np.empty(0))]
    assert bool(judged(TrainModeInEval(), build)) is fires


def test_a_model_without_such_layers_has_no_mode():
    build = evaluated(4, 4, ())
    build.compare(build.run(build.value((BATCH, 16)), "body"))
    assert judged(TrainModeInEval(), build) == []


def twice(**facts: Any) -> Model:
    return Model().arm("determinism/evaluation", **{"differs": True, "share": 0.1, "operation": "dropout", **facts})


@pytest.mark.parametrize(
    ("facts", "severities"),
    [
        ({}, [Severity.WARNING]),
        ({"share": 0.001}, [Severity.WARNING]),
        ({"share": 0.00099}, []),
        ({"differs": False}, []),
        ({"operation": ""}, [Severity.ADVICE]),
        ({"text": "x = F.dropout(x, 0.1, training = True)"}, [Severity.ADVICE]),
        ({"text": "x = F.dropout(x, 0.1)"}, [Severity.WARNING]),
        ({"registered": True}, [Severity.ADVICE]),
    ],
)
def test_two_passes_that_differ(facts, severities):
    assert [f.severity for f in judged(NondeterministicEval(), twice(**facts))] == severities


@pytest.mark.parametrize(
    ("operation", "text", "code"),
    [
        ("dropout", "F.dropout(x, 0.2)", "x = F.dropout(x, p=0.2, training=self.training)"),
        ("scaled_dot_product_attention", "", "dropout_p=0.2 if self.training else 0.0"),
        ("dropout", "x = nn.Dropout(0.2)(x)", "self.dropout = nn.Dropout(0.2)"),
    ],
)
def test_the_fix_is_for_that_very_call(operation, text, code):
    (found,) = judged(NondeterministicEval(), twice(operation=operation, text=text, p=0.2))
    assert code in found.fixes[0].code


def test_a_model_that_cannot_be_copied_is_an_abstention():
    (said,) = judged(NondeterministicEval(), Model().arm("determinism/evaluation", failure="no copy"))
    assert isinstance(said, Abstention)
    (said,) = judged(
        BatchnormDrift(), Model().arm("final/evaluation", failure="x").arm("final/batch statistics", [1.0])
    )
    assert isinstance(said, Abstention)


def dropped(p: float, loss: Any = STUCK, after: str = "linear", **options: Any) -> Model:
    build = Model().layers("body", "head").stepping().loss(loss)
    build.facts(loss_family="cross_entropy", classes=10.0, loss_lower_bound=0.0)
    hidden = build.run(build.value((BATCH, 16)), "body")
    hidden = build.operation("dropout", hidden, module="drop", p=p, **options)
    if after == "linear":
        hidden = build.run(hidden, "head", (BATCH, 10))
    elif after == "norm":
        hidden = build.operation("batch_norm", hidden, module="norm")
        hidden = build.run(hidden, "head", (BATCH, 10))
    elif after:
        hidden = build.operation(after, hidden)
    return build.compare(hidden)


@pytest.mark.parametrize(
    ("build", "severities"),
    [
        (dropped(0.6), []),
        (dropped(0.61), [Severity.WARNING]),
        (dropped(0.61, LEARNS), [Severity.ADVICE]),
        (dropped(0.9, training=False), []),
        (dropped(0.1, LEARNS, after=""), [Severity.WARNING]),
        (dropped(0.1, LEARNS, after="view"), [Severity.WARNING]),
        (dropped(0.0, LEARNS, after=""), []),
        (dropped(0.5, LEARNS, after="norm"), [Severity.ADVICE]),
    ],
)
def test_rate_and_place_of_dropout(build, severities):
    assert [f.severity for f in judged(DropoutTooHigh(), build)] == severities


def normed(shape: tuple[int, ...], loss: Any = LEARNS, **options: Any) -> Model:
    build = Model().layers("body").stepping().loss(loss).facts(loss_lower_bound=0.0)
    hidden = build.run(build.value((shape[0], 16)), "body", shape)
    return build.compare(build.operation("batch_norm", hidden, module="norm", **options))


@pytest.mark.parametrize(
    ("shape", "fires"),
    [
        ((7, 16), True),
        ((8, 16), False),
        ((2, 16, 3), True),
        ((2, 16, 4), False),
        ((1, 16, 9), True),
        ((2, 8, 4, 4), False),
    ],
)
def test_values_per_channel(shape, fires):
    found = judged(BatchnormTinyBatch(), normed(shape))
    assert [(f.severity, f.location.module) for f in found] == ([(Severity.WARNING, "norm")] if fires else [])


def test_an_error_where_training_does_not_work_and_nothing_in_evaluation_mode():
    assert [f.severity for f in judged(BatchnormTinyBatch(), normed((2, 16), STUCK))] == [Severity.ERROR]
    assert judged(BatchnormTinyBatch(), normed((2, 16), training=False)) == []


def test_a_frozen_norm_is_left_alone():
    build = Model().layers("body").stepping()
    hidden = build.run(build.value((2, 16)), "body", (2, 16))
    frozen = build.value((16,), origin="parameter", name="norm.weight")
    assert (
        judged(BatchnormTinyBatch(), build.compare(build.operation("batch_norm", hidden, frozen, module="norm"))) == []
    )


def drifted(running: float, own: float, steps: int = 60, loss: Any = LEARNS, **facts: Any) -> Model:
    build = Model(steps=steps).loss(loss).facts(loss_lower_bound=0.0)
    return build.arm("final/evaluation", [running]).arm("final/batch statistics", [own], **facts)


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (drifted(0.35, 0.1), True),  # more than a tenth of 2.25, three times the loss
        (drifted(0.29, 0.1), False),  # under three times the loss
        (drifted(1.65, 0.9), True),  # half of what was gained
        (drifted(1.6, 0.9), False),
        (drifted(float("nan"), 0.1), True),
        (drifted(0.35, 0.1, steps=49), False),
        (drifted(0.35, 0.1, steps=199, usual_momentum=True), False),
        (drifted(0.35, 0.1, steps=200, usual_momentum=True), True),
        (drifted(0.35, 0.1, loss=STUCK), False),
        (drifted(0.1, 0.1), False),
    ],
)
def test_evaluation_mode_loses_what_training_gained(build, fires):
    assert bool(judged(BatchnormDrift(), build)) is fires


def drawn(losses: list[float], averaged: float = 0.1, steps: int = 60, loss: Any = LEARNS, **facts: Any) -> Model:
    """A training whose running statistics were fine at the end, by luck."""
    build = drifted(0.1, 0.1, steps, loss)
    known = {"averaged": averaged, "apart": 1.0, "samples": 3.0, "momentum": 0.99, "module": "norm", **facts}
    return build.arm("final/draws", losses, **known)


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (drawn([0.3, 0.31]), True),  # three times the loss, and more than a twentieth of 2.25
        (drawn([0.29, 0.3]), False),  # under three times the loss
        (drawn([0.1, 0.51]), True),  # the mean counts
        (drawn([0.14], 0.04), False),  # three times the loss, but less than a twentieth of 2.31
        (drawn([0.17], 0.05), True),
        (drawn([0.85, 1.25], 0.7), True),  # a fifth of what was gained
        (drawn([0.9, 1.0], 0.7), False),
        (drawn([float("nan"), 0.1]), True),
        (drawn([1.0], steps=50), True),
        (drawn([1.0], steps=49), False),
        (drawn([1.0], loss=STUCK), False),
        (drawn([1.0], apart=0.33), True),
        (drawn([1.0], apart=0.32), False),  # the script took the statistics anew
        (drifted(0.1, 0.1).arm("final/draws", failure="no copy"), False),
    ],
)
def test_statistics_of_the_last_batch_are_judged_by_what_is_to_be_expected_of_them(build, fires):
    assert bool(judged(BatchnormDrift(), build)) is fires


@pytest.mark.parametrize(("averaged", "fires"), [(1.61, True), (1.62, False)])
def test_a_noisy_training_has_learned_where_the_average_says_so(averaged, fires):
    """Its loss falls from 3.2 to a little over the 2.30 of ten classes, of which 70 % are 1.612."""
    build = drawn([2.9], averaged, loss=lambda step: 3.2 - step / 70).facts(loss_family="cross_entropy", classes=10.0)
    hidden = build.run(build.value((BATCH, 16)), "head", (BATCH, 10))
    found = judged(BatchnormDrift(), build.layers("head").compare(hidden))
    assert judge(build.recording).reason == NO_BETTER
    assert bool(found) is fires


@pytest.mark.parametrize(
    ("momentum", "steps", "advised", "keras"),
    [(0.99, 600, "0.01", True), (0.9, 60, "0.1", True), (0.99, 100, "0.05", False), (0.5, 600, "0.1", False)],
)
def test_the_momentum_that_is_advised(momentum, steps, advised, keras):
    (found,) = judged(BatchnormDrift(), drawn([1.0], steps=steps, momentum=momentum))
    assert f"momentum={advised})" in found.fixes[0].code
    assert ("Keras" in found.fixes[0].says) is keras
    assert f"momentum of {momentum}" in found.title


@pytest.mark.parametrize(
    ("build", "limit"),
    [(drawn([0.31]), 5), (drawn([0.6]), 20), (drifted(0.35, 0.1), 10), (drifted(1.65, 0.9), 50)],
)
def test_the_limit_that_is_told_is_the_one_that_was_reached(build, limit):
    (found,) = judged(BatchnormDrift(), build)
    assert found.evidence[0].limit == pytest.approx(limit)


def test_where_both_are_so_the_momentum_is_what_is_told():
    build = drifted(2.0, 0.1).arm(
        "final/draws", [2.0], averaged=0.1, apart=1.0, samples=3.0, momentum=0.9, module="norm"
    )
    (found,) = judged(BatchnormDrift(), build)
    assert "momentum of 0.9" in found.title


@pytest.mark.parametrize(("moved", "fires"), [(0.1, True), (0.09, False)])
def test_a_frozen_norm_that_moves(moved, fires):
    build = drifted(0.1, 0.1, frozen_drift=moved, frozen_module="body.1")
    assert ["body.1" in f.title for f in judged(BatchnormDrift(), build)] == ([True] if fires else [])


def test_losses_against_each_other_are_left_alone():
    build = drifted(2.0, 0.1)
    build.recording = replace(build.recording, facts={**build.recording.facts, "several_optimizers": True})
    assert judged(BatchnormDrift(), build) == []
