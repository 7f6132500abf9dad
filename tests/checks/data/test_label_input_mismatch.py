from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.data.conflicting_labels import ConflictingLabels
from netdoctor.checks.data.label_input_mismatch import LabelInputMismatch
from netdoctor.data import Evaluation
from netdoctor.finding import Abstention, Finding, Severity
from tests.checks.builders import Builder
from tests.checks.data.facts import facts, learned, reading, rows


def curve(end: float, steps: int = 240) -> np.ndarray:
    return np.linspace(2.3, end, steps)


def recording(true: float, *shuffled: float, steps: int = 240, **loss: object) -> Builder:
    build = reading(facts(rows(), shape=(32, 4)), **loss).arm("pairing/true", curve(true, steps))
    build.recording.targets = [facts(np.arange(10.0)[:, None], "cross_entropy", shape=(32,), dtype="int64")]
    for name, end in zip(("shuffled", "shuffled again"), shuffled, strict=False):
        build.arm(f"pairing/{name}", curve(end, steps))
    return build


def judged(build: Builder) -> list[Finding | Abstention]:
    return list(LabelInputMismatch().judge(build.done()))


def test_shuffled_pairs_as_easy_as_true_ones() -> None:
    (finding,) = judged(recording(1.5, 1.5, 1.55))
    assert isinstance(finding, Finding)
    assert finding.severity is Severity.WARNING
    assert finding.location.step == 0


@pytest.mark.parametrize(("true", "fires"), [(1.45, True), (1.2, False), (0.1, False)])
def test_true_pairs_that_are_easier_acquit(true: float, fires: bool) -> None:
    assert bool(judged(recording(true, 1.5, 1.5))) is fires


@pytest.mark.parametrize(
    "build", [recording(2.25, 2.25, 2.25), recording(1.5, 1.5), recording(1.5, 1.5, 1.5, steps=59)]
)
def test_it_abstains_where_little_was_learned_or_run(build: Builder) -> None:
    (abstention,) = judged(build)
    assert isinstance(abstention, Abstention)


def test_true_pairs_that_alone_are_learned_acquit_without_a_word() -> None:
    assert judged(recording(0.5, 2.25, 2.25)) == []


def test_arms_of_other_lengths_are_compared_as_far_as_the_shortest_goes() -> None:
    """Where time ran out: the true arm had three times the steps of the others, and got no further in as many."""
    build = recording(1.5, 1.5, 1.5, steps=80)
    build.arm("pairing/true", np.concatenate([curve(1.5, 80), np.linspace(1.5, 0.1, 160)]))
    assert [item.severity for item in judged(build) if isinstance(item, Finding)] == [Severity.WARNING]


@pytest.mark.parametrize(("other", "fires"), [(1.7, True), (1.5, False)])
def test_shuffled_arms_that_differ_allow_for_more(other: float, fires: bool) -> None:
    """The true arm lies 4 % of a constant prediction's loss under the mean of the others."""
    mean = (1.5 + other) / 2
    assert bool([item for item in judged(recording(mean - 0.12, 1.5, other)) if isinstance(item, Finding)]) is fires


def test_a_failure_is_the_reason() -> None:
    (abstention,) = judged(recording(1.5, 1.5).arm("pairing/shuffled again", failure="the targets could not be told"))
    assert isinstance(abstention, Abstention)
    assert abstention.reason == "the targets could not be told"


def test_silent_where_training_works_or_the_scale_is_the_cause() -> None:
    assert judged(recording(1.5, 1.5, 1.5, loss=learned)) == []
    scaled = recording(1.5, 1.5, 1.5).arm("scaling/control", [2.3] * 60)
    assert judged(scaled.arm("scaling/input", np.geomspace(2.3, 0.2, 60))) == []


@pytest.mark.parametrize(("ends", "fires"), [(1.85, True), (1.83, False), (2.3, True)])
def test_a_held_out_loss_that_falls_acquits(ends: float, fires: bool) -> None:
    """What the samples have in common carries over: labels at random would have nothing in common."""
    build = recording(1.5, 1.5, 1.5)
    build.recording.evaluations = [Evaluation(np.arange(4) * 10, np.array([2.3, 2.2, ends, ends]))]
    assert bool(judged(build)) is fires


def test_images_are_no_labels() -> None:
    build = recording(1.5, 1.5, 1.5)
    build.recording.targets = [facts(rows(), "mse_loss", shape=(32, 1, 8, 8))]
    assert judged(build) == []


def torn(moved: float, again: float = 300.0, seen: float = 800.0, **fields: object) -> Builder:
    """True pairs are easier by far, so that only the labels that changed can tell."""
    given = {"kind": "classes", "conflicting": 200.0, "chance": 0.5, "again": again, "moved": moved, "seen": seen}
    return recording(0.1, 1.5, 1.5).arm("labels/conflicts", **(given | fields))


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (torn(120), True),
        (torn(119), False),
        (torn(20, again=29, seen=90), False),
        (torn(20, again=30, seen=90), True),
        (torn(120, seen=1000), True),
        (torn(120, seen=1001), False),
        (torn(120, natural=True), False),
        (torn(120, kind="regression"), False),
        (torn(120, chance=0.0), False),
    ],
)
def test_labels_that_change_from_epoch_to_epoch_are_a_lost_pairing(build: Builder, fires: bool) -> None:
    """And no conflicting labels, which a data set has in each epoch alike."""
    found = judged(build)
    assert [item.severity for item in found if isinstance(item, Finding)] == [Severity.ERROR] * fires
    if fires:
        assert list(ConflictingLabels().judge(build.done())) == []


def test_labels_of_a_training_that_works_may_change() -> None:
    assert judged(torn(300).loss(np.linspace(2.3, 0.1, 60))) == []
