"""missing-positional-encoding and wrong-custom-backward, at their limits."""

from __future__ import annotations

from typing import Any

import pytest

from netdoctor.checks.structure.missing_positional_encoding import MissingPositionalEncoding
from netdoctor.checks.structure.wrong_custom_backward import WrongCustomBackward
from netdoctor.finding import Abstention, Severity
from netdoctor.recording import Track
from tests.checks.builders import Builder

STUCK = 2.3


def blind(
    without: float,
    given: float,
    *,
    start: float = 1.0,
    shuffled: float | None = None,
    loss: Any = None,
    unused: str = "",
    **order: Any,
) -> Builder:
    build = Builder(steps=60).loss(loss or (lambda step: 2.3 * 0.9**step)).facts(loss_lower_bound=0.0)
    build.arm("positions/order", **{"blind": True, "length": 12.0, "unused": unused, **order})
    build.arm("positions/without", [start, without], best=without)
    other = without if shuffled is None else shuffled
    build.arm("positions/shuffled", [start, other], best=other)
    return build.arm("positions/with", [start, given], best=given)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (blind(0.6, 0.5), [Severity.WARNING]),
        (blind(0.6, 0.52), []),
        (blind(0.25, 0.01), [Severity.WARNING]),
        (blind(0.24, 0.01), []),
        (blind(0.6, 0.1, loss=STUCK), [Severity.ERROR]),
        (blind(0.6, 0.1, blind=False), []),
        (blind(0.6, 0.7), []),
        (blind(0.6, 0.5, shuffled=0.58), []),  # so do they in any order
        (blind(0.6, 0.5, shuffled=0.59), [Severity.WARNING]),
        (blind(0.6, 0.52, shuffled=0.9), []),  # numbers that only disturb are no measure
    ],
)
def test_positions_that_would_help(build, expected):
    assert [f.severity for f in MissingPositionalEncoding().judge(build.done())] == expected


@pytest.mark.parametrize(("start", "expected"), [(0.8, [Severity.WARNING]), (0.58, [])])
def test_a_better_start_with_positions_is_nothing_learned(start, expected):
    """The positions change what an untrained model gives: a set of particles began at 6 with them, at 16 without."""
    build = blind(0.6, 0.5)
    build.arm("positions/with", [start, 0.5], best=0.5)
    assert [f.severity for f in MissingPositionalEncoding().judge(build.done())] == expected


def test_the_unused_positions_are_named():
    build = blind(0.6, 0.1, unused="position").layer("position", "Embedding", line=12)
    (found,) = MissingPositionalEncoding().judge(build.done())
    assert (found.location.module, found.location.line) == ("position", 12)
    assert "position is there, and has no effect" in found.explanation


@pytest.mark.parametrize("arms", [(), ("positions/without",), ("positions/shuffled",)])
def test_blindness_without_a_trial_is_an_abstention(arms):
    build = Builder().arm("positions/order", blind=True, length=8.0)
    for name in arms:
        build.arm(name, failure="too few batches")
    (said,) = MissingPositionalEncoding().judge(build.done())
    assert isinstance(said, Abstention)
    assert list(MissingPositionalEncoding().judge(Builder().arm("positions/order", failure="no copy").done())) == []


def function(**facts: Any) -> Builder:
    return Builder().arm("custom backward/Swish", **{"off": 0.3, "file": "train.py", "line": 9.0, **facts})


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (function(), [Severity.ERROR]),
        (function(off=0.01), [Severity.ERROR]),
        (function(off=0.0099), []),
        (function(passes=True), [Severity.ADVICE]),
        (function(identity=True), [Severity.ADVICE]),
        (function(stops=True), [Severity.ADVICE]),
        (function(off=0.0), []),
    ],
)
def test_gradients_beside_finite_differences(build, expected):
    assert [f.severity for f in WrongCustomBackward().judge(build.done())] == expected


@pytest.mark.parametrize(
    ("steps", "values", "silent", "found"),
    [
        (8, 0.0, True, ["b.weight"]),
        (7, 0.0, True, []),
        (8, lambda step: 1e-12 * (step == 3), True, []),
        (8, 0.0, False, []),
    ],
)
def test_a_backward_that_gives_nothing(steps, values, silent, found):
    build = function(off=0.0, backward_file="train.py", backward_line=20.0, **({"silent": True} if silent else {}))
    for name, gradient in (("a.weight", 0.3), ("b.weight", values)):
        build.parameter(name, (4, 4), gradient=gradient)
    build.optimizer("Adam", lr=0.01)
    recording = build.done()
    for key, track in list(recording.tracks.items()):
        recording.tracks[key] = Track(track.steps[:steps], track.values[:steps])
    judged = list(WrongCustomBackward().judge(recording))
    assert [one.places for one in judged] == [tuple(found)] * bool(found)
    assert all((one.severity, one.location.line) == (Severity.ERROR, 20) for one in judged)


def test_a_constant_factor_is_said_and_a_function_that_cannot_be_called_abstains():
    (found,) = WrongCustomBackward().judge(function(factor=0.5).done())
    assert "0.5 times what it should be" in found.explanation
    assert (found.location.line, found.places) == (9, ("Swish",))
    (said,) = WrongCustomBackward().judge(Builder().arm("custom backward/F", failure="random").done())
    assert isinstance(said, Abstention)
