from __future__ import annotations

import pytest

from netdoctor.checks.training.clipping_without_effect import ClippingWithoutEffect
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder

CALL = SourceLine("t.py", 12, "torch.nn.utils.clip_grad_norm_(weights, 1.0)")
KINDS = {"b": "backward", "s": "step", "z": "zero_grad", "c": "clip"}


def run(
    order: str, times: int = 10, norm: float = 3.0, nothing: int = 0, loss: float = 0.9, steps: int = 40
) -> Builder:
    """Events by letters, some times over; `loss` is what it is multiplied by in each step."""
    build = Builder(steps).loss(lambda step: loss**step).scalar("gradient norm", norm).scalar("clip limit", 1.0)
    for letter in order * times:
        kind = KINDS[letter]
        build.recording.events.append(Event(0, kind, source=CALL if kind == "clip" else None))
        build.recording.counts[kind] = build.recording.counts.get(kind, 0) + 1
    return build.count("clip of nothing", nothing)


def judged(build: Builder) -> list[Finding]:
    return list(ClippingWithoutEffect().judge(build.done()))


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ("zbsc", "comes after the step"),
        ("bszc", "comes before backward"),
        ("zcbs", "comes before backward"),
        ("zbcs", ""),
        ("bcsz", ""),
        ("zbcbcs", ""),  # each of two batches that are added up
        ("zbscs", ""),  # one backward for two optimizers
        ("zbs", ""),
    ],
)
def test_where_the_call_stands(order: str, says: str) -> None:
    found = judged(run(order))
    assert [says in f.explanation for f in found] == [True] * bool(says)
    assert all(f.fixes[0].code == f"loss.backward()\n{CALL.text}\noptimizer.step()" for f in found)


@pytest.mark.parametrize(("nothing", "fires"), [(10, True), (9, False), (0, False)])
def test_a_generator_that_was_used_up(nothing: int, fires: bool) -> None:
    found = judged(run("zbcs", nothing=nothing))
    assert bool(found) is fires
    for each in found:
        assert each.location.line == CALL.line
        assert each.fixes[0].code.startswith("weights = list(model.parameters())")


@pytest.mark.parametrize(("norm", "fires"), [(1.0, False), (1.01, True), (float("nan"), False)])
def test_only_where_the_limit_would_matter(norm: float, fires: bool) -> None:
    assert bool(judged(run("zbsc", norm=norm))) is fires


@pytest.mark.parametrize(
    ("norm", "loss", "severity"),
    [
        (11.0, 1.1, Severity.ERROR),
        (10.0, 1.1, Severity.WARNING),
        (11.0, 0.9, Severity.WARNING),
    ],
)
def test_an_error_where_the_loss_rises(norm: float, loss: float, severity: Severity) -> None:
    (found,) = judged(run("zbsc", norm=norm, loss=loss))
    assert found.severity is severity
    assert ("loss-diverging" in found.causes) is (severity is Severity.ERROR)


@pytest.mark.parametrize(("times", "fires"), [(7, False), (8, True)])
def test_few_calls_say_little(times: int, fires: bool) -> None:
    assert bool(judged(run("zbsc", times))) is fires
