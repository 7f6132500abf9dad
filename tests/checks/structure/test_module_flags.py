"""`module.requires_grad = ...`: True is told by frozen-by-mistake, False by frozen-parameter-moves."""

from __future__ import annotations

import pytest

from netdoctor.checks.structure.frozen_by_mistake import FrozenByMistake
from netdoctor.checks.training.frozen_parameter_moves import FrozenParameterMoves
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder, Curve

FALLS, FLAT = (lambda step: 2.3 * 0.9**step), 2.3


def recording(text: str, value: bool, step: int = 10, *paths: str, loss: Curve = FALLS, **body: object) -> Builder:
    build = Builder(steps=40).loss(loss).facts(loss_family="cross_entropy", loss_lower_bound=0.0)
    build.parameter("body.0.weight", (8, 8), requires_grad=not value, **body)
    build.parameter("body.2.weight", (8, 8), requires_grad=not value, **body)
    build.parameter("bodyguard.weight", (8, 8), requires_grad=not value, update=0.1)
    build.parameter("head.weight", (8, 8), update=0.1).optimizer(parameters=["head.weight"])
    source = SourceLine("train.py", 7, text)
    for path in paths or ("body",):
        build.recording.events.append(Event(step, "module requires_grad", path, float(value), source))
    return build


def frozen(build: Builder) -> list[Finding]:
    return list(FrozenByMistake().judge(build.done()))


def moving(build: Builder) -> list[Finding]:
    return list(FrozenParameterMoves().judge(build.done()))


@pytest.mark.parametrize(("loss", "severity"), [(FALLS, Severity.WARNING), (FLAT, Severity.ERROR)])
def test_true_on_what_stays_frozen(loss: Curve, severity: Severity) -> None:
    (finding,) = frozen(recording("body.requires_grad = True", True, loss=loss))
    assert (finding.severity, finding.location.module, finding.location.line) == (severity, "body", 7)
    assert (finding.first_step, finding.places) == (10, ("body.0.weight", "body.2.weight"))
    assert finding.fixes[0].code == "body.requires_grad_(True)"
    assert finding.evidence[0].measured == 2
    assert finding.share == 0.5


def test_a_loop_over_modules_is_one_line() -> None:
    (finding,) = frozen(recording("m.requires_grad = True", True, 3, "body", "body.0", "body.2"))
    assert finding.title == "`requires_grad = True` on body unfreezes nothing"


@pytest.mark.parametrize(("step", "fires"), [(39, True), (40, False)])
def test_after_the_last_step_nothing_is_lost(step: int, fires: bool) -> None:
    assert bool(frozen(recording("body.requires_grad = True", True, step))) is fires


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("module.requires_grad = flag  # thaw", "module.requires_grad_(flag)  # thaw"),
        ("for m in parts: m.requires_grad=True; n += 1", "for m in parts: m.requires_grad_(True); n += 1"),
        ('setattr(part, "requires_grad", True)', "body.requires_grad_(True)"),
        ("", "body.requires_grad_(True)"),
    ],
)
def test_the_line_as_it_should_be(text: str, code: str) -> None:
    assert frozen(recording(text, True))[0].fixes[0].code == code


@pytest.mark.parametrize(("owner", "says"), [(0, False), (None, True)])
def test_the_optimizer_must_hold_them(owner: int | None, says: bool) -> None:
    (finding,) = frozen(recording("body.requires_grad = True", True, optimizer=owner))
    assert ("optimizer" in finding.fixes[0].says) is says


def test_false_on_what_goes_on_training() -> None:
    (finding,) = moving(recording("body.requires_grad = False", False, update=lambda step: 0.1))
    assert (finding.severity, finding.location.line, finding.location.module) == (Severity.WARNING, 7, "body")
    assert finding.places == ("body.0.weight", "body.2.weight")
    assert finding.fixes[0].code == "body.requires_grad_(False)"


@pytest.mark.parametrize(
    "body",
    [
        {"update": lambda step: 0.1 if step < 10 else 0.0},  # it moved before only
        {"update": 0.0},
        {"optimizer": None, "update": 0.1},
        {},  # no optimizer ever stepped on it
    ],
)
def test_silent_where_nothing_moves(body: dict[str, object]) -> None:
    assert moving(recording("body.requires_grad = False", False, **body)) == []


def test_either_check_leaves_the_other_value_alone() -> None:
    assert moving(recording("body.requires_grad = True", True, update=0.1)) == []
    assert frozen(recording("body.requires_grad = False", False, update=0.1)) == []
