from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.structure.term_without_gradient import TermWithoutGradient
from netdoctor.finding import Severity
from tests.checks.structure.models import BATCH, Model, judged

DEAD = {"requires_grad": False}


def begun() -> tuple[Model, int, int]:
    """A model, its output, and a live loss of it."""
    build = Model().layers("body").stepping().with_gradient("body.weight")
    x = build.value((BATCH, 16))
    out = build.run(x, "body")
    loss = build.operation("cross_entropy", out, build.value((BATCH,), "int64"), shape=(), line=10)
    return build, out, loss


def stored(build: Model, shape: tuple[int, ...] = ()) -> int:
    """A number of the model that was computed without a graph, up to a mean."""
    out = build.run(build.value((BATCH, 16)), "body", grad_enabled=False, out=DEAD, line=4, text="p = body(x)")
    return build.operation("mul", out, build.value((BATCH, 16)), shape=shape, line=7, text="pg = p * w", out=DEAD)


def ended(build: Model, *terms: int, name: str = "add", **options) -> Model:
    return build.backward(build.operation(name, *terms, shape=(), line=12, text="loss = ce + pg", **options))


@pytest.mark.parametrize("name", ["add", "sub", "iadd", "stack"])
def test_a_stored_term(name):
    build, _, loss = begun()
    (found,) = judged(TermWithoutGradient(), ended(build, stored(build), loss, name=name))
    assert found.severity is Severity.ERROR
    assert (found.location.line, found.places) == (7, ("body.weight", "body.bias")[: len(found.places)])
    assert "line 4 (p = body(x))" in found.explanation
    assert "no_grad" in found.title


def test_a_loss_that_falls_well_is_warned_of():
    build, _, loss = begun()
    build.loss(lambda at: 2.3 * 0.9**at)
    (found,) = judged(TermWithoutGradient(), ended(build, loss, stored(build)))
    assert found.severity is Severity.WARNING


def test_through_means_factors_and_signs():
    build, _, loss = begun()
    part = build.operation("neg", stored(build, (BATCH,)), shape=(BATCH,), out=DEAD, line=8)
    half = build.operation("mul", loss, shape=(), **{"1": 0.5})
    added = build.operation("add", half, part, shape=(BATCH,), line=9)
    (found,) = judged(TermWithoutGradient(), build.backward(build.operation("mean", added, shape=())))
    assert found.location.line == 8


def test_a_detached_term_is_warned_of_with_its_line():
    build, out, loss = begun()
    size = build.operation("mean", build.operation("abs", out), shape=())
    gone = build.operation("detach", size, shape=(), line=11, text="size = h.abs().mean().detach()", out=DEAD)
    (found,) = judged(TermWithoutGradient(), ended(build, loss, gone))
    assert (found.severity, found.fixes[0].code) == (Severity.WARNING, "size = h.abs().mean()")


READ = 0.2537


def numbered(number: float, line: int = 11, live: bool = False, mean: float = READ) -> Model:
    build, out, loss = begun()
    size = loss if live else build.operation("mean", out, shape=(), line=11, out={"mean": mean})
    build.operation("item", size, shape=(), line=line, text="loss = ce + size.item()", out=DEAD)
    return ended(build, loss, **{"1": number})


@pytest.mark.parametrize(
    "build", [numbered(READ), numbered(0.025, line=12), numbered(READ * 0.5), numbered(READ * 1.23e-4)]
)
def test_a_number_of_an_item(build):
    (found,) = judged(TermWithoutGradient(), build)
    assert found.location.line == 12
    assert ".item()" in found.title


@pytest.mark.parametrize(
    "build",
    [
        numbered(READ * 0.1234),
        numbered(READ * (0.5 + 1e-8)),
        numbered(0.0, line=12),
        numbered(1.0, mean=1.0),
        numbered(0.5, mean=2.0),
        numbered(READ, line=12, live=True),
    ],
)
def test_other_numbers(build):
    assert judged(TermWithoutGradient(), build) == []


def constant() -> Model:
    build, _, loss = begun()
    return ended(build, loss, build.value(()))


def unused_coefficient() -> Model:
    build, _, loss = begun()
    return ended(build, loss, build.operation("mul", stored(build), shape=(), out={**DEAD, "low": 0.0, "high": 0.0}))


def under_a_coefficient_of_zero() -> Model:
    build, _, loss = begun()
    part = build.operation("mul", build.operation("add", loss, stored(build), shape=()), shape=(), **{"1": 0})
    return ended(build, part, loss)


def straight_through() -> Model:
    build, _, loss = begun()
    other = build.operation("sub", build.operation("mul", loss, shape=()), loss, shape=())
    return ended(build, loss, build.operation("detach", other, shape=(), out=DEAD))


def largest_score() -> Model:
    """m + log(exp(x - m)), with m detached."""
    build, out, _ = begun()
    largest = build.operation("detach", build.operation("amax", out, shape=(BATCH,)), shape=(BATCH,), out=DEAD)
    rest = build.operation("exp", build.operation("sub", out, largest))
    return ended(build, build.operation("log", rest, shape=()), build.operation("mean", largest, shape=(), out=DEAD))


def entropy_of_a_teacher() -> Model:
    """p log p - p log q."""
    build, out, _ = begun()
    p = build.run(build.value((BATCH, 16)), "body", grad_enabled=False, out=DEAD)
    own = build.operation("mul", p, build.operation("log", p, out=DEAD), shape=(), out=DEAD)
    return ended(build, own, build.operation("mul", p, out, shape=()), name="sub")


def weighing() -> Model:
    build, out, _ = begun()
    return build.backward(build.operation("mul", out, stored(build, (BATCH, 16)), shape=()))


def below_a_distance() -> Model:
    """(prediction - target)²."""
    build, out, _ = begun()
    apart = build.operation("sub", out, stored(build, (BATCH, 16)))
    return build.backward(build.operation("pow", apart, shape=(), **{"1": 2}))


def cut_off_altogether() -> Model:
    """The matter of detached-graph."""
    build, _, loss = begun()
    build.layers("side")
    side = build.run(build.value((BATCH, 16)), "side", grad_enabled=False, out=DEAD)
    return ended(build, loss, build.operation("mean", side, shape=(), out=DEAD))


def in_no_optimizer() -> Model:
    build, _, loss = begun()
    ended(build, loss, stored(build))
    for name, parameter in build.recording.parameters.items():
        build.recording.parameters[name] = replace(parameter, optimizer=None)
    return build


CASES = [
    constant,
    unused_coefficient,
    under_a_coefficient_of_zero,
    straight_through,
    largest_score,
    entropy_of_a_teacher,
    weighing,
    below_a_distance,
    cut_off_altogether,
    in_no_optimizer,
]


@pytest.mark.parametrize("case", CASES)
def test_it_stays_silent(case):
    assert judged(TermWithoutGradient(), case()) == []
