"""A suspicion whose fixes were tried in vain is advice, and what it explained stands by itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from netdoctor.experiments.tried import weighed, without_cured
from netdoctor.finding import Finding, Fix, Location, Reach, Severity, Trial, Verdict

FALLS, STILL = tuple(2.0 - 0.01 * n for n in range(100)), (2.0,) * 100


@dataclass
class Step:
    begins: int = 0
    iterations: list[int] = field(default_factory=lambda: [0] * 24)

    def parts(self):
        return [self]


def fix(verdict, treated=STILL, control=STILL) -> Fix:
    trial = None if verdict is None else Trial(verdict, control, treated, len(treated))
    return Fix("leaky-relu", "", "", Reach.MODEL, trial)


def finding(*fixes, first_step=7, check="dead-relu", symptoms=()) -> Finding:
    return Finding(check, "t", Severity.ERROR, "", Location(), (), fixes, first_step=first_step, symptoms=symptoms)


@pytest.mark.parametrize(
    ("fixes", "advice"),
    [
        ([fix(Verdict.NO_EFFECT)], True),
        ([fix(Verdict.NO_EFFECT), fix(Verdict.WORSE)], True),
        ([fix(Verdict.NO_EFFECT), fix(None)], True),
        ([fix(Verdict.NO_EFFECT), fix(Verdict.CURED)], False),
        ([fix(Verdict.NO_EFFECT), fix(Verdict.EASED)], False),
        ([fix(Verdict.WORSE), fix(Verdict.NOT_REPRODUCED, FALLS, FALLS)], True),
        ([fix(Verdict.WORSE), fix(Verdict.NOT_REPRODUCED, tuple(2 * v - 2 for v in FALLS), FALLS)], False),
        ([fix(Verdict.NOT_REPRODUCED, FALLS, FALLS)], False),
        ([fix(Verdict.COULD_NOT_RUN)], False),
        ([fix(Verdict.COULD_NOT_RUN), fix(Verdict.NO_EFFECT)], True),
        ([fix(None)], False),
        ([], False),
    ],
)
def test_what_was_tried_in_vain(fixes, advice):
    (found,) = weighed(finding(*fixes), {"dead-relu"}, Step())
    assert (found.severity is Severity.ADVICE) is advice


@pytest.mark.parametrize(("first", "advice"), [(None, True), (0, True), (24, True), (25, False)])
def test_the_captured_steps_must_hold_it(first, advice):
    (found,) = weighed(finding(fix(Verdict.NO_EFFECT), first_step=first), {"dead-relu"}, Step())
    assert (found.severity is Severity.ADVICE) is advice


@pytest.mark.parametrize(("share", "advice"), [(0.99, True), (1.0, False)])
def test_all_of_a_layer_is_missed_whatever_was_tried(share, advice):
    (found,) = weighed(replace(finding(fix(Verdict.NO_EFFECT)), share=share), {"dead-relu"}, Step())
    assert (found.severity is Severity.ADVICE) is advice


@pytest.mark.parametrize(("check", "advice"), [("constant-layer", False), ("loss-not-decreasing", True)])
def test_what_leaves_a_layer_constant_is_missed(check, advice):
    found = weighed(finding(fix(Verdict.NO_EFFECT), symptoms=(finding(check=check),)), {"dead-relu"}, Step())
    assert (found[0].severity is Severity.ADVICE) is advice


def test_its_symptoms_stand_by_themselves():
    below = finding(check="loss-not-decreasing")
    above = finding(fix(Verdict.NO_EFFECT), symptoms=(below,))
    found = weighed(above, {"dead-relu"}, Step())
    assert [(f.check, f.severity, f.symptoms) for f in found] == [
        ("dead-relu", Severity.ADVICE, ()),
        ("loss-not-decreasing", Severity.ERROR, ()),
    ]
    assert weighed(above, {"another"}, Step()) == [above]


@pytest.mark.parametrize(("verdict", "idle"), [(Verdict.CURED, True), (Verdict.EASED, False), (None, False)])
def test_what_speaks_only_of_harm_is_idle_where_another_fix_cures(verdict, idle):
    """Its symptom is left, to find its place under the one that cures."""
    other, symptom = finding(fix(verdict), check="missing-zero-grad"), finding(check="exploding-gradients")
    found = finding(fix(Verdict.NO_EFFECT), check="recurrent-gradients", symptoms=(symptom,))
    assert without_cured([other, found], {"recurrent-gradients"}) == [other, symptom if idle else found]
    assert without_cured([other, found], {"dead-relu"}) == [other, found]


def test_what_its_own_fix_cures_or_a_combination_needs_is_a_cause():
    other, cured = finding(fix(Verdict.CURED), check="a"), finding(fix(Verdict.CURED))
    assert without_cured([other, cured], {"dead-relu"}) == [other, cured]
    needed = replace(finding(fix(Verdict.NO_EFFECT)), apart=True)
    assert without_cured([other, needed], {"dead-relu"}) == [other, needed]
    assert without_cured([cured], {"dead-relu"}) == [cured]
