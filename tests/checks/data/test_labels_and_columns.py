"""conflicting-labels, class-imbalance and constant-feature, at their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netdoctor.checks.data.class_imbalance import ClassImbalance
from netdoctor.checks.data.conflicting_labels import ConflictingLabels
from netdoctor.checks.data.constant_feature import ConstantFeature
from netdoctor.data import TensorFacts
from netdoctor.finding import Abstention, Finding, Severity
from netdoctor.graph import Operation, StepGraph
from tests.checks.builders import Builder
from tests.checks.data.facts import facts, learned, reading, rows, stuck

WORKS, FAILS = learned, stuck


def severities(check: Any, build: Builder) -> list[Severity]:
    return [item.severity for item in check.judge(build.done()) if isinstance(item, Finding)]


def contradicting(number: float, seen: float = 1000.0, loss: Any = WORKS, **fields: Any) -> Builder:
    build = reading(facts(rows()), loss=loss)
    given = {"kind": "classes", "conflicting": number, "seen": seen, "within": 0.0, "samples": "3,5"}
    return build.arm("labels/conflicts", **{**given, **fields})


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (contradicting(50), [Severity.WARNING]),
        (contradicting(49), [Severity.ADVICE]),
        (contradicting(10, loss=FAILS), [Severity.WARNING]),
        (contradicting(9, loss=FAILS), [Severity.ADVICE]),
        (contradicting(150, loss=FAILS), [Severity.ERROR]),
        (contradicting(149, loss=FAILS), [Severity.WARNING]),
        (contradicting(150), [Severity.WARNING]),
        (contradicting(3, seen=10.0), []),
        (contradicting(4, seen=10.0), [Severity.WARNING]),
        (contradicting(500, natural=True), []),
        (contradicting(500, kind="regression"), []),
        (contradicting(0, kind="regression", within=60.0), [Severity.WARNING]),
    ],
)
def test_samples_that_cannot_be_right(build, expected):
    assert severities(ConflictingLabels(), build) == expected


def test_conflicts_name_their_samples_or_abstain():
    (found,) = ConflictingLabels().judge(contradicting(60).done())
    assert found.location.samples == (3, 5)
    (said,) = ConflictingLabels().judge(Builder().arm("labels/conflicts", failure="no copy").done())
    assert isinstance(said, Abstention)
    assert list(ConflictingLabels().judge(contradicting(500).facts(moving_target=True).done())) == []


def skewed(common: float, rare: float, right: float, steps: int = 60, **extra: Any) -> Builder:
    counts = {"targets": [common, rare], "predictions": [common + rare, 0.0], "right": [common, right]}
    return Builder(steps=steps).arm("final/evaluation", [0.3], curves=counts).facts(**extra)


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (skewed(180, 20, 1), True),
        (skewed(179, 21, 1), False),
        (skewed(180, 20, 2), False),
        (skewed(95, 10, 0), True),
        (skewed(95, 9, 0), False),
        (skewed(180, 20, 0, steps=29), False),
        (skewed(180, 20, 0, several_optimizers=True), False),
        (Builder().arm("final/evaluation", [0.3]), False),
    ],
)
def test_a_majority_that_is_all_that_is_predicted(build, fires):
    assert severities(ClassImbalance(), build) == ([Severity.WARNING] if fires else [])


def test_the_weights_are_those_of_the_classes():
    (found,) = ClassImbalance().judge(skewed(190, 10, 0).done())
    assert "[0.526, 10]" in found.fixes[0].code
    (found,) = ClassImbalance().judge(skewed(190, 10, 0, loss_family="bce").done())
    assert "pos_weight=torch.tensor(19)" in found.fixes[0].code


def table(values: np.ndarray, **fields: Any) -> Builder:
    build = Builder()
    build.recording.inputs = [facts(values, **fields)]
    return build


def with_column(value: float, column: int = 1, count: int = 400) -> np.ndarray:
    values = rows(columns=8, count=count)
    values[:, column] = value
    return values


def sparse() -> np.ndarray:
    values = with_column(0.0)
    values[:, 4:] = np.where(np.random.default_rng(1).random((400, 4)) < 0.8, 0.0, values[:, 4:])
    return values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (with_column(3.9), [Severity.WARNING]),
        (with_column(0.0), [Severity.WARNING]),
        (with_column(1.0), [Severity.ADVICE]),
        (with_column(3.9, count=64), [Severity.WARNING]),
        (with_column(3.9, count=63), []),
        (sparse(), [Severity.ADVICE]),
        (np.round(10 * with_column(3.0)), []),
        (rows(columns=8), []),
        (np.full((400, 1), 3.9), []),
    ],
)
def test_a_column_that_never_varies(values, expected):
    assert severities(ConstantFeature(), table(values)) == expected


@pytest.mark.parametrize(("optimizers", "expected"), [(1, Severity.WARNING), (2, Severity.ADVICE)])
def test_a_probe_on_the_features_of_another_model(optimizers: int, expected: Severity) -> None:
    build = table(with_column(0.0))
    for _ in range(optimizers):
        build.optimizer("Adam", lr=0.01)
    assert severities(ConstantFeature(), build) == [expected]


def along(points: int = 32, count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Functions at equal distances: sine series that are 0 at both ends, walks from 0, and a 10 × 10 field that is 0 on its rim."""
    draw = np.random.default_rng(0)
    waves = np.sin(np.pi * np.arange(1, 6)[:, None] * np.linspace(0, 1, points))
    edge = np.sin(np.pi * np.arange(1, 3)[:, None] * np.linspace(0, 1, 10))
    field = np.einsum("nij,ia,jb->nab", draw.standard_normal((count, 2, 2)), edge, edge)
    steps = np.cumsum(draw.standard_normal((count, points - 1)), axis=1)
    series = draw.standard_normal((count, 5)) / np.sqrt(np.arange(1, 6)) @ waves
    series[:, -1] = 0
    field[:, [0, -1]] = field[:, :, [0, -1]] = 0
    return series, np.concatenate([np.zeros((count, 1)), steps], axis=1), field.reshape(count, -1)


@pytest.mark.parametrize("which", range(3))
def test_a_function_that_is_held_at_its_ends_has_no_sensor_that_hangs(which: int) -> None:
    values = along()[which]
    assert severities(ConstantFeature(), table(values)) == [Severity.ADVICE]
    values[:, 13] = 0.4  # amid the others
    assert severities(ConstantFeature(), table(values)) == [Severity.WARNING]


@pytest.mark.parametrize("column", [0, 7, 31])
def test_a_hanging_sensor_at_the_edge_of_a_table_is_no_end_of_a_function(column: int) -> None:
    values = rows(columns=32)
    values[:, column] = 0.0
    assert severities(ConstantFeature(), table(values)) == [Severity.WARNING]
    assert severities(ConstantFeature(), table(values * np.random.default_rng(3).uniform(0.2, 5, 32))) == [
        Severity.WARNING
    ]


def test_columns_that_are_constant_with_most_others_are_padding():
    values = rows(columns=8)
    values[:, 3:] = 0.25
    assert severities(ConstantFeature(), table(values)) == []


def test_a_channel_is_named_and_the_same_batch_again_says_little():
    (found,) = ConstantFeature().judge(table(with_column(0.0), axis="channel", shape=(32, 8, 4, 4)).done())
    assert (found.severity, found.places) == (Severity.WARNING, ("channel 1",))
    assert severities(ConstantFeature(), table(with_column(3.9), shape=(16, 8), batches=(1, 1, 1))) == []
    assert isinstance(table(rows()).done().inputs[0], TensorFacts)


@pytest.mark.parametrize(("passes", "expected"), [(1, Severity.WARNING), (2, Severity.ADVICE)])
def test_a_model_that_is_asked_several_times_in_a_step_may_see_other_values(passes: int, expected: Severity) -> None:
    build = table(with_column(0.0)).linear("first")
    build.recording.layers[0] = replace(build.recording.layers[0], function="linear")
    build.recording.graph = StepGraph([Operation(n, "linear", "first", "Linear", (), ()) for n in range(passes)])
    assert severities(ConstantFeature(), build) == [expected]


def linked(
    adjacency: np.ndarray, beside: tuple[int, ...] = (40, 8), batches: tuple[int, ...] = (7,) * 8
) -> list[Finding]:
    build = reading(facts(adjacency, "adjacency", batches=batches))
    build.recording.inputs.append(facts(np.random.default_rng(1).standard_normal((400, 8)), "features", shape=beside))
    return list(ConstantFeature(rows=40).judge(build.done()))


def test_an_adjacency_matrix_is_no_table() -> None:
    """Two nodes without any neighbour; the same graph in every step, or another sparse one in each."""
    edges = np.random.default_rng(0).random((40, 40))
    edges[:, [3, 9]] = 0
    assert linked(edges) == []
    assert linked(np.where(edges > 0.8, edges, 0), batches=tuple(range(8))) == []
    assert linked(
        edges, batches=tuple(range(8))
    )  # full, and another in each step: a table with as many rows as columns
    assert linked(edges, beside=(50, 8))  # nothing has as many rows


@pytest.mark.parametrize(
    ("stuck", "right", "fires"),
    [(4, 996, True), (3, 997, False), (4, 986, False), (50, 950, True), (51, 949, False), (0, 1000, False)],
)
def test_samples_that_cannot_be_taught(stuck: float, right: float, fires: bool) -> None:
    build = contradicting(0)
    said = {"seen": 1000.0, "stuck": stuck, "right": right, "samples": "3,17", "batch": 2.0, "passes": 30.0}
    build.arm("labels/unfitted", **said)
    found = list(ConflictingLabels().judge(build.done()))
    assert [(f.severity, f.location.samples) for f in found if isinstance(f, Finding)] == (
        [(Severity.ADVICE, (3, 17))] if fires else []
    )
