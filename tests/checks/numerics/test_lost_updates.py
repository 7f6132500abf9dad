from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.numerics.lost_updates import LostUpdates
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Role, Stat
from tests.checks.builders import Builder, Curve


def recording(*shares: Curve, falls: bool = False, lr: Curve = 1e-4) -> Builder:
    build = Builder(steps=60)
    for number, share in enumerate(shares):
        build.parameter(f"{number}.weight", dtype="bfloat16")
        build.of_parameter(f"{number}.weight", Stat.ROUNDED_AWAY, share, Role.UPDATE)
    build.loss((lambda step: 2.0 * 0.95**step) if falls else 2.0).facts(loss_lower_bound=0.0)
    return build.scalar("lr", lr)


def judged(build: Builder) -> list[Finding]:
    return list(LostUpdates().judge(build.done()))


def test_it_names_the_type_and_its_resolution() -> None:
    (finding,) = judged(recording(0.9, 0.7))
    assert "bfloat16" in finding.title
    assert "1/512" in finding.explanation
    assert finding.places == ("0.weight", "1.weight")


@pytest.mark.parametrize(("share", "fires"), [(0.49, False), (0.5, True)])
def test_the_share_of_a_matrix(share: float, fires: bool) -> None:
    assert bool(judged(recording(share))) is fires


@pytest.mark.parametrize(("shares", "fires"), [((0.9, 0.0, 0.0, 0.0), False), ((0.9, 0.9, 0.0, 0.0), True)])
def test_the_share_of_the_matrices(shares: tuple[float, ...], fires: bool) -> None:
    assert bool(judged(recording(*shares))) is fires


@pytest.mark.parametrize(("share", "fires"), [(0.89, False), (0.9, True)])
def test_a_training_that_falls_is_warned_of_only_when_nearly_all_is_lost(share: float, fires: bool) -> None:
    found = judged(recording(share, falls=True))
    assert bool(found) is fires
    assert all(finding.severity is Severity.WARNING for finding in found)
    assert judged(recording(share))[0].severity is Severity.ERROR


def test_where_the_loss_says_nothing_it_is_a_warning() -> None:
    build = recording(0.6)
    build.recording.losses.clear()
    assert judged(build)[0].severity is Severity.WARNING


def test_steps_at_a_rate_of_zero_and_without_a_gradient_do_not_count() -> None:
    assert judged(recording(lambda step: 1.0 if step < 20 else 0.0, lr=lambda step: 0.0 if step < 20 else 1.0)) == []
    assert judged(recording(float("nan"))) == []


def test_silent_for_vectors_and_for_float32() -> None:
    build = Builder(steps=60).parameter("0.bias", (16,), dtype="bfloat16").loss(2.0).linear("1")
    assert judged(build.of_parameter("0.bias", Stat.ROUNDED_AWAY, 1.0, Role.UPDATE)) == []


def test_what_is_lost_late_counts_unless_the_rate_has_gone_down() -> None:
    def late(step: int) -> float:
        return 0.3 if step < 40 else 0.95

    assert [f.severity for f in judged(recording(late, falls=True))] == [Severity.WARNING]
    decayed = recording(late, falls=True, lr=lambda step: 1e-4 if step < 40 else 1e-6)
    assert judged(decayed) == []


def copied(build: Builder, own: float, float32: float) -> Builder:
    """Both copies start at 2 and lose so much of it; "as it is" moves half as far."""
    build.arm(
        "rounding/as it is",
        2 - own * np.minimum(1, np.arange(40) / 30),
        moved=0.01,
        file="train.py",
        line=7.0,
        text="m.half()",
    )
    return build.arm("rounding/float32 between the steps", 2 - float32 * np.minimum(1, np.arange(40) / 30), moved=0.02)


@pytest.mark.parametrize(
    ("own", "float32", "fires"), [(0.4, 0.59, False), (0.4, 0.61, True), (0.1, 0.19, False), (0.0, 0.11, True)]
)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_copy_tells_whatever_the_share(own: float, float32: float, fires: bool, share: float) -> None:
    """Half as far again, and a twentieth of the start at least. What is lost all the time was lost on the copy, too."""
    found = judged(copied(recording(share).loss(lambda step: 2.0 * 0.98**step), own, float32))
    assert [finding.severity for finding in found] == [Severity.ERROR] * fires
    for finding in found:
        assert (finding.location.file, finding.location.line) == ("train.py", 7)
        assert "50 % as far" in finding.explanation


@pytest.mark.parametrize(("end", "severity"), [(0.3, Severity.ERROR), (0.1, Severity.WARNING)])
def test_where_the_loss_got_there_all_the_same_it_is_a_warning(end: float, severity: Severity) -> None:
    build = recording(0.7).loss(lambda step: max(end, 2.0 - 0.05 * step))
    assert [finding.severity for finding in judged(copied(build, 0.4, 0.8))] == [severity]


def test_what_is_lost_after_the_steps_of_the_copy_is_not_answered_by_it() -> None:
    def late(step: int) -> float:
        return 0.3 if step < 40 else 0.95

    assert [f.severity for f in judged(copied(recording(late), 0.4, 0.4))] == [Severity.WARNING]
    assert judged(copied(recording(lambda step: 0.95), 0.4, 0.4)) == []


def test_copies_that_broke_or_were_too_short_say_nothing() -> None:
    build = recording(0.95).arm("rounding/as it is", [2.0] * 7, moved=0.01)
    assert (
        judged(build.arm("rounding/float32 between the steps", [2.0] * 6 + [1.0], moved=0.01))[0].severity
        is Severity.ERROR
    )
    build = recording(0.3).arm("rounding/as it is", [2.0] * 40, moved=0.01)
    assert judged(build.arm("rounding/float32 between the steps", [1.0] * 39 + [float("nan")], moved=0.01)) == []
