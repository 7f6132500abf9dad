"""What was cured, what is new, what is still there, and how the losses differ."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from netdoctor.comparison import compare
from netdoctor.finding import Finding, Location, Severity
from netdoctor.recording import Recording, Series
from netdoctor.render import compared
from netdoctor.report import Report


def finding(check: str = "dead-relu", module: str | None = "a", text: str = "x", **more: object) -> Finding:
    return replace(
        Finding(check, f"{check} at {module}", Severity.ERROR, "", Location(module, file="/f.py", line=3, text=text)),
        **more,  # type: ignore[arg-type]
    )


def report(*findings: Finding, verdict: str = "sick", **more: object) -> Report:
    return replace(Report("train.py", verdict, 10, findings), **more)  # type: ignore[arg-type]


def test_cured_new_and_still_there() -> None:
    stays, gone, come = finding("a"), finding("b"), finding("c")
    result = compare(report(stays, gone), report(come, stays, passed=("b",)))
    assert (result.cured, result.new, result.still, result.unjudged) == ((gone,), (come,), ((stays, stays),), ())


def test_the_same_fault_is_known_after_its_line_or_its_layer_moved() -> None:
    for moved in (
        finding(module="z", text="y"),  # only one of its check on both sides
        finding(text="y"),
        finding(module="z"),
    ):
        assert compare(report(finding()), report(moved)).still == ((finding(), moved),)


def test_the_nearest_place_wins() -> None:
    one, two = finding(module="a", text="1"), finding(module="b", text="2")
    result = compare(report(one, two), report(two))
    assert (result.still, result.cured) == (((two, two),), (one,))
    other = finding(module=None, text="")
    result = compare(report(other, one), report(replace(one, title="other"), other))
    assert {pair[0].location.module for pair in result.still if pair[0].location == pair[1].location} == {"a", None}


def test_a_finding_that_became_a_symptom_is_not_relieved_and_silence_is_no_cure() -> None:
    symptom, cause = finding("loss-not-decreasing", None), finding("dead-relu")
    before = report(replace(cause, symptoms=(symptom,)))
    assert compare(before, report(symptom)).relieved == ()
    cured = compare(before, report(verdict="healthy", passed=("dead-relu",)))
    assert (cured.relieved, cured.unjudged) == ((symptom,), ())
    assert compare(before, report(verdict="healthy")).unjudged == ("dead-relu",)


def test_advice_is_no_matter() -> None:
    advice = finding(severity=Severity.ADVICE)
    result = compare(report(advice), report())
    assert (result.cured, result.new, result.still) == ((), (), ())


def losses(*values: float) -> Recording:
    return Recording(losses={"loss": Series(np.arange(len(values)), np.array(values))})


@pytest.mark.parametrize(
    ("other", "apart"),
    [
        ((4.0, 2.0, 1.0), None),
        ((4.0, 2.019, 1.0), None),
        ((4.0, 2.021, 1.0), 1),
        ((4.0, float("nan"), 1.0), 1),
        ((5.0, 2.0, 1.0), 0),
        ((4.0, 2.0), None),
    ],
)
def test_curves_say_where_they_part(other: tuple[float, ...], apart: int | None) -> None:
    ends = {"losses": {"loss": (4.0, 1.0)}}
    (curve,) = compare(report(**ends), report(**ends), (losses(4.0, 2.0, 1.0), losses(*other))).curves
    assert curve.apart_at == apart
    assert curve.before == (4.0, 1.0, 1.0)


def test_without_recordings_only_the_ends_are_known() -> None:
    (curve,) = compare(report(losses={"loss": (4.0, 1.0), "x": (1.0, 1.0)}), report(losses={"loss": (4.0, 3.0)})).curves
    assert (curve.after[0], curve.after[2], curve.apart_at) == (4.0, 3.0, None)
    assert np.isnan(curve.after[1])


def test_json_is_strict_and_the_text_says_it_all() -> None:
    ends = {"losses": {"loss": (4.0, float("nan"))}}
    result = compare(report(finding("a"), finding("b"), **ends), report(finding("c"), finding("a"), **ends))
    data = json.loads(result.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert (data["format"], data["cured"][0]["check"], data["new"][0]["check"]) == (1, "b", "c")
    assert data["still_there"][0]["before"]["location"] == {"module": "a", "file": "/f.py", "line": 3}
    assert data["curves"][0]["first_lowest_last"]["after"] == [4.0, "NaN", "NaN"]
    text = compared.render(result, 80)
    for said in ("1 cured, 1 new, 1 still there; sick → sick.", "Cured: 1", "b at a", "4 → NaN in 10 steps"):
        assert said in text
    assert "perhaps not cured: b" in text
    assert max(map(len, text.splitlines())) <= 80
    assert compared.render(result, 80, ascii_only=True).isascii()
