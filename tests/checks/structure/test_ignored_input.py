"""ignored-input, at its limits."""

from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.structure.ignored_input import IgnoredInput
from netdoctor.finding import Abstention, Finding, Severity
from tests.checks.builders import Builder

READ = np.zeros(10)


def used(
    *,
    axes: int = 2,
    whole: bool = False,
    other: bool = True,
    failing: bool = False,
    tokens: bool = False,
    **curves: object,
) -> Builder:
    build = Builder(steps=60).facts(loss_family="cross_entropy", classes=10.0, loss_lower_bound=0.0)
    build.loss(2.3 if failing else lambda step: 2.3 * 0.9**step)
    if other:
        build.arm("usage/0", axes=2.0, whole=False, argument="x", curves={"axis 1": READ})
    named = {f"axis {axis[1:]}": curve for axis, curve in curves.items()}
    return build.arm("usage/1", axes=float(axes), whole=whole, tokens=tokens, argument="y", curves=named)


def marked(*ignored: int, size: int = 10, constant: tuple[int, ...] = ()) -> np.ndarray:
    curve = np.zeros(size)
    curve[list(ignored)] = 1.0
    curve[list(constant)] = np.nan
    return curve


def found(build: Builder) -> list[tuple[Severity, str]]:
    return [(f.severity, f.title) for f in IgnoredInput().judge(build.done()) if isinstance(f, Finding)]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (used(whole=True), "ignores y:"),
        (used(a1=marked(3)), "ignores feature 3 of dimension 1 of y"),
        (used(a1=marked(6, 7, 8, 9)), "ignores features 6 to 9 of dimension 1 of y"),
        (used(a1=marked(2, 4, 9)), "ignores 3 features of dimension 1 of y"),
        (used(axes=3, a1=marked(0, 1, 2, 3, 4), a2=READ), "ignores positions 0 to 4 of dimension 1 of y"),
        (used(axes=3, a1=marked(0, 1, 2, 3), a2=READ), ""),
        (used(axes=3, a1=marked(0, 1, 2, 3, constant=(8, 9)), a2=READ), "ignores positions 0 to 3"),
        (used(axes=4, a1=marked(2, size=3), a2=READ), "ignores channel 2 of dimension 1"),
        (used(axes=4, a1=np.zeros(3), a3=marked(9)), ""),
        (used(a1=READ), ""),
        (used(tokens=True, a1=marked(9)), ""),
        (used(tokens=True, a1=marked(5, 6, 7, 8, 9)), "ignores positions 5 to 9 of dimension 1 of y"),
        (used(tokens=True, a1=marked(7, constant=(0, 1, 2, 3, 4, 5, 8, 9))), ""),  # one end of a ragged edge
        (used(tokens=True, a1=marked(6, 7, constant=(0, 1, 2, 3, 8, 9))), ""),
        (used(tokens=True, a1=marked(5, 6, 7, constant=(0, 1, 8, 9))), "ignores positions 5 to 7"),
        (used(a1=marked(*range(10))), ""),
        (used(a1=marked(constant=(1, 2))), ""),
        (used(a1=marked(0, 1, 2, size=64)), ""),
        (used(a1=marked(0, 1, 2, size=63)), "ignores features 0 to 2"),
        (used(a1=marked(0, 1, 2, 3, size=64)), "ignores features 0 to 3"),
        (used(a1=marked(100, size=256)), "ignores feature 100"),
    ],
)
def test_what_is_ignored(build, says):
    reports = found(build)
    assert len(reports) == bool(says)
    assert all(says in title and grade is Severity.WARNING for grade, title in reports)


def test_an_error_where_a_whole_input_is_lost_and_training_does_not_work():
    assert [grade for grade, _ in found(used(whole=True, failing=True))] == [Severity.ERROR]


def test_two_inputs_without_influence_are_one_fault():
    build = used(whole=True, failing=True).arm("usage/2", axes=2.0, whole=True, argument="z", curves={})
    ((grade, title),) = found(build)
    assert grade is Severity.ERROR
    assert title == "the model ignores y and z: taken from other samples, the loss stays the same"


def test_a_model_that_reads_nothing_has_another_fault():
    assert found(used(whole=True, other=False)) == []


def test_what_could_not_be_tried_is_said():
    (said,) = IgnoredInput().judge(Builder().arm("usage/0", failure="no copy").done())
    assert isinstance(said, Abstention)
