from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdoctor.checks.data.mixing import mixing
from netdoctor.checks.data.order import CODE
from netdoctor.checks.data.unshuffled_data import UnshuffledData
from netdoctor.data import Evaluation, TensorFacts
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder
from tests.checks.data.facts import facts


def labels(order: np.ndarray, batch: int = 32, steps: int = 20, hashes: tuple[int, ...] | None = None) -> TensorFacts:
    """A target of classes whose batches are consecutive pieces of `order`."""
    pieces = [order[(i * batch) % len(order) :][:batch] for i in range(steps)]
    counts = np.stack([np.bincount(p.astype(int), minlength=10) for p in pieces]).astype(float)
    ordered = np.array([np.mean(np.diff(p) >= 0) for p in pieces])
    known = tuple(range(steps)) if hashes is None else hashes
    rows = order[:, None]
    return facts(rows, "cross_entropy", dtype="int64", shape=(batch,), batches=known, classes=counts, ordered=ordered)


def judged(target: TensorFacts, **known: object) -> list[Finding]:
    build = Builder(steps=60).loss(lambda step: 2.3 * 0.95**step).facts(**known)
    build.recording.targets = [target]
    return list(UnshuffledData().judge(build.done()))


def mixed(seed: int = 0, count: int = 640) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 10, count)


def test_sorted_classes_are_an_error() -> None:
    (finding,) = judged(labels(np.sort(mixed())))
    assert finding.severity is Severity.ERROR
    assert "shuffle=True" in finding.fixes[0].code
    assert finding.location.line == 9


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("loader = DataLoader(data, batch_size=8)", "loader = DataLoader(data, batch_size=8, shuffle=True)"),
        ("loader = DataLoader(data, 8, shuffle=False)", "loader = DataLoader(data, 8, shuffle=True)"),
        ("loader = DataLoader(data, 8, sampler=one)", CODE),
        ("loader = DataLoader(", CODE),
        ("loader = make(data)", CODE),
    ],
)
def test_it_points_at_the_line_that_builds_the_loader_and_rewrites_it(text: str, code: str) -> None:
    build = Builder(steps=60).loss(lambda step: 2.3 * 0.95**step)
    build.recording.events.append(Event(1, "loader built", source=SourceLine("train.py", 4, text)))
    build.recording.targets = [labels(np.sort(mixed()))]
    (finding,) = UnshuffledData().judge(build.done())
    assert (finding.location.line, finding.fixes[0].code) == (4, code)


def test_two_classes_a_batch_in_order_are_a_warning() -> None:
    sorted_ = np.sort(mixed())
    pairs = [
        np.sort(np.r_[sorted_[i : i + 11], sorted_[i + 128 : i + 139], sorted_[i + 256 : i + 266]])
        for i in range(0, 360, 20)
    ]
    (finding,) = judged(labels(np.concatenate(pairs), steps=18))
    assert finding.severity is Severity.WARNING


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 64))
def test_random_batches_never_fire(seed: int, batch: int) -> None:
    assert judged(labels(mixed(seed), batch)) == []


@pytest.mark.parametrize(
    ("order", "different", "fires"),
    [
        (np.repeat([0, 1], 320), 20, True),
        (np.repeat([0, 1], 320), 1, False),  # one batch again and again
        (np.tile(np.repeat([0, 1], 32), 10), 20, False),  # real, fake, real, ...
    ],
)
def test_batches_of_one_class_are_told_apart_by_their_inputs(order: np.ndarray, different: int, fires: bool) -> None:
    """The labels of a batch are one of two tensors, whichever samples are in it."""
    target = labels(order, hashes=(7,) * 10 + (8,) * 10)
    build = Builder(steps=60).loss(lambda step: 0.7 * 0.95**step)
    build.recording.targets = [target]
    seen = tuple(number % different for number in range(20))
    build.recording.inputs = [facts(np.zeros((32, 4)), shape=(32, 4), batches=seen)]
    assert bool(list(UnshuffledData().judge(build.done()))) is fires


def test_one_batch_again_and_again_is_no_matter_of_order() -> None:
    assert judged(labels(np.sort(mixed())[:32], hashes=(7,) * 20)) == []
    assert judged(labels(np.sort(mixed()), batch=640)) == []


@pytest.mark.parametrize(("unused", "fires"), [(5, False), (6, True)])
def test_one_batch_again_and_again_while_the_loader_gives_others(unused: int, fires: bool) -> None:
    build = Builder(steps=60).loss(lambda step: 2.3 * 0.95**step).facts(unused_inputs=unused)
    build.recording.inputs = [facts(np.zeros((32, 4)), batches=(7,) * 8)]
    found = list(UnshuffledData().judge(build.done()))
    assert bool(found) is fires
    if fires:
        assert found[0].severity is Severity.ERROR
        assert "same 32 samples in each of the 8 measured steps" in found[0].explanation
        assert found[0].location.line == 9


@pytest.mark.parametrize(
    ("batches", "anew", "held_out", "steps", "grade"),
    [
        (12, 7, (2.0, 1.0, 1.0), 8, Severity.WARNING),
        (12, 7, (2.0, 1.0, 1.2, 1.2), 8, Severity.ERROR),
        (12, 4, (), 5, None),  # steps: no habit yet
        (2, 0, (), 8, Severity.WARNING),
        (1, 7, (2.0, 1.0, 1.2, 1.2), 8, None),  # full batches of a loader
        (0, 7, (2.0, 1.0, 1.2, 1.2), 8, Severity.ERROR),
        (0, 7, (2.0, 1.0, 1.19, 1.19), 8, None),  # nothing tells that there are other samples
        (0, 4, (2.0, 1.0, 1.2, 1.2), 8, None),  # the same tensor in some steps: what is kept is meant
    ],
)
def test_one_batch_that_is_taken_anew_each_time(
    batches: int, anew: int, held_out: tuple[float, ...], steps: int, grade: Severity | None
) -> None:
    build = Builder(steps=60).loss(lambda step: 2.3 * 0.9**step)
    build.facts(first_of_batches=batches, inputs_made_anew=anew)
    build.recording.inputs = [facts(np.zeros((32, 4)), batches=(7,) * steps)]
    curve = np.asarray(held_out)
    build.recording.evaluations = [Evaluation(np.arange(len(curve)) * 20, curve)] if held_out else []
    found = list(UnshuffledData().judge(build.done()))
    assert [f.severity for f in found] == ([grade] if grade else [])


@pytest.mark.parametrize(("steps", "fires"), [(5, False), (6, True)])
def test_few_steps_are_no_habit(steps: int, fires: bool) -> None:
    spread = np.sort(mixed())
    assert bool(judged(labels(np.r_[spread[::4]], batch=26, steps=steps))) is fires


@pytest.mark.parametrize("fact", ["moving_target", "several_optimizers"])
def test_silent_where_models_play_against_each_other(fact: str) -> None:
    assert judged(labels(np.sort(mixed())), **{fact: True}) == []


def test_labels_per_token_are_left_alone() -> None:
    target = labels(np.sort(mixed()))
    build = Builder(steps=60).loss(2.3)
    build.recording.targets, build.recording.inputs = [target], [facts(np.zeros((4, 8)), shape=(4, 8))]
    assert list(UnshuffledData().judge(build.done())) == []


def test_tiny_batches_say_nothing() -> None:
    assert mixing(labels(np.sort(mixed()), batch=3)) is None


@pytest.mark.parametrize(("ordered", "within", "fires"), [(1.0, 0.4, True), (0.98, 0.4, False), (1.0, 0.6, False)])
def test_regression_targets_in_ascending_order(ordered: float, within: float, fires: bool) -> None:
    values = np.linspace(-1.0, 1.0, 400)
    values = values / values.std() + 0.001
    steps = {"ordered": np.full(8, ordered), "within": np.full(8, within), "shape": (32, 1)}
    target = facts(values[:, None], "mse_loss", **steps)
    assert bool(judged(target)) is fires


def buffered(size: int) -> np.ndarray:
    """Sorted classes through a shuffle buffer of this size."""
    rng, pool, out = np.random.default_rng(0), [], []
    for one in np.sort(mixed()):
        if len(pool) < size:
            pool.append(one)
            continue
        drawn = rng.integers(size)
        out.append(pool[drawn])
        pool[drawn] = one
    return np.array(out)


def grouped(classes: int) -> np.ndarray:
    """Batches of 32 from a few classes each, drawn anew for every batch and in any order, as metric learning has them."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.permutation(np.repeat(rng.permutation(10)[:classes], 32 // classes)) for _ in range(20)])


@pytest.mark.parametrize(("order", "fires"), [(buffered(64), True), (grouped(2), False)])
def test_a_batch_is_like_the_one_before_where_a_buffer_is_too_small(order: np.ndarray, fires: bool) -> None:
    target = labels(order)
    mixed_ = mixing(target)
    assert mixed_ is not None
    assert mixed_.share < UnshuffledData.poor
    assert max(mixed_.ordered, mixed_.majority) < UnshuffledData.majority
    assert bool(judged(target)) is fires


def test_a_stream_cannot_be_shuffled_by_its_loader() -> None:
    build = Builder(steps=60).loss(lambda step: 2.3 * 0.95**step)
    at = SourceLine("train.py", 4, "loader = DataLoader(stream, batch_size=8)")
    build.recording.events.append(Event(1, "loader built", "stream", source=at))
    build.recording.targets = [labels(np.sort(mixed()))]
    (finding,) = UnshuffledData().judge(build.done())
    assert finding.fixes[0].code == ""
    assert "buffer" in finding.fixes[0].says
