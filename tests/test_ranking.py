from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdoctor.check import Check
from netdoctor.finding import Certainty, Finding, Fix, Severity, Trial, Verdict
from netdoctor.ranking import rank

NAMES = tuple("abcdef")


def check(name: str, *explains: str, family: str = "training") -> Check:
    """A check of that name and family that explains the others named."""
    fields = {"name": name, "explains": frozenset(explains), "__module__": f"netdoctor.checks.{family}.{name}"}
    return dataclasses.dataclass(frozen=True)(type(name, (Check,), fields))()


def finding(name: str, severity: Severity = Severity.ERROR, **fields) -> Finding:
    return Finding(name, f"{name} is wrong", severity, "because", **fields)


def names(findings) -> list[str]:
    return [f.check for f in findings]


def test_a_symptom_goes_under_its_cause():
    (root,) = rank([finding("b"), finding("a")], [check("a", "b"), check("b")])
    assert root.check == "a"
    assert names(root.symptoms) == ["b"]


def test_explanation_is_transitive_over_findings_only() -> None:
    """A chain through a check that found nothing is broken: it would make a cause its symptom's symptom."""
    checks = [check("a", "b"), check("b", "c"), check("c")]
    assert len(rank([finding("a"), finding("c")], checks)) == 2
    (root,) = rank([finding("a"), finding("b"), finding("c")], checks)
    assert root.check == "a"
    assert {symptom.check for symptom in root.symptoms} == {"b", "c"}


def test_symptoms_of_symptoms_lie_flat_under_the_root():
    (root,) = rank(map(finding, "cba"), [check("a", "b"), check("b", "c"), check("c")])
    assert names(root.symptoms) == ["b", "c"]
    assert all(not symptom.symptoms for symptom in root.symptoms)


def test_without_an_explanation_findings_stay_apart():
    assert len(rank(map(finding, "ab"), [check("a"), check("b")])) == 2


def test_a_finding_may_cause_more_than_its_check_explains():
    """As a trial showed of this one; what that explains in turn comes along, another finding of the check causes nothing."""
    checks = [check("a"), check("b", "c"), check("c")]
    (root,) = rank([finding("a", causes=frozenset("b")), finding("b"), finding("c")], checks)
    assert (root.check, names(root.symptoms)) == ("a", ["b", "c"])
    assert len(rank([finding("a"), finding("b"), finding("c")], checks)) == 2
    assert len(rank([finding("a", causes=frozenset("b"), first_step=9), finding("b", first_step=2)], checks)) == 2


def test_one_check_in_two_places_stays_two_findings():
    two = [finding("a", places=("x",)), finding("a", places=("y",))]
    assert len(rank(two, [check("a", "a")])) == 2


def test_of_several_causes_the_best_ranked_one_gets_the_symptom():
    a, b = finding("a", Severity.WARNING), finding("b")
    first, second = rank([a, b, finding("c")], [check("a", "c"), check("b", "c"), check("c")])
    assert (first.check, names(first.symptoms)) == ("b", ["c"])
    assert (second.check, second.symptoms) == ("a", ())


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_two_that_explain_each_other_the_surer_is_the_cause(order):
    given_ = {"a": finding("a"), "b": finding("b", certainty=Certainty.PROVEN)}
    (root,) = rank([given_[n] for n in order], [check("a", "b"), check("b", "a")])
    assert root.check == "b"


def test_a_cycle_between_equals_is_resolved_by_the_earlier_step():
    (root,) = rank([finding("a", first_step=5), finding("b", first_step=2)], [check("a", "b"), check("b", "a")])
    assert root.check == "b"


def test_a_cycle_between_equals_is_resolved_upstream_first():
    checks = [check("a", "b", family="training"), check("b", "a", family="data")]
    (root,) = rank(map(finding, "ab"), checks)
    assert root.check == "b"


def test_a_cause_is_raised_to_its_gravest_symptom():
    (root,) = rank([finding("a", Severity.WARNING), finding("b")], [check("a", "b"), check("b")])
    assert root.check == "a"
    assert root.severity is Severity.ERROR
    assert root.symptoms[0].severity is Severity.ERROR


def test_advice_does_not_swallow_what_is_graver():
    found = rank([finding("a", Severity.ADVICE), finding("b")], [check("a", "b"), check("b")])
    assert names(found) == ["b", "a"]
    assert found[1].severity is Severity.ADVICE


def test_advice_may_explain_advice():
    (root,) = rank([finding(n, Severity.ADVICE) for n in "ab"], [check("a", "b"), check("b")])
    assert names(root.symptoms) == ["b"]


@pytest.mark.parametrize(
    ("cause", "symptom", "explained"),
    [
        (0, 0, True),
        (1, 0, False),
        (1, 1, True),
        (5, 7, True),
        (9, 7, False),
        (30, 28, True),
        (None, 0, True),
        (9, None, True),
    ],
)
def test_what_came_later_explains_nothing(cause, symptom, explained):
    found = rank([finding("a", first_step=cause), finding("b", first_step=symptom)], [check("a", "b"), check("b")])
    assert (len(found) == 1) is explained


def test_the_order_of_roots():
    roots = [
        finding("a", Severity.ADVICE),
        finding("b", Severity.WARNING, certainty=Certainty.PROVEN),
        finding("c", certainty=Certainty.INFERRED),
        finding("d", first_step=4, share=0.9),
        finding("e", first_step=2, share=0.1),
        finding("f", first_step=2, share=0.2),
    ]
    assert names(rank(roots, map(check, NAMES))) == ["f", "e", "d", "c", "b", "a"]


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({"first_step": 0}, "nan"),
        ({"first_step": 3}, "a"),  # what was wrong before may well be why
        ({"first_step": 0, "certainty": Certainty.INFERRED}, "a"),
        ({"first_step": 0, "severity": Severity.WARNING}, "a"),
    ],
)
def test_a_nan_of_the_first_step_is_named_before_what_is_measured_after_it(fields, first):
    broken = check("nan", family="numerics")
    object.__setattr__(broken, "breaks", True)
    proven = finding("a", certainty=Certainty.PROVEN, first_step=0)
    assert names(rank([proven, finding("nan", **fields)], [check("a"), broken]))[0] == first


def test_the_root_with_symptoms_comes_before_its_equal():
    found = rank(map(finding, "abc"), [check("a"), check("b", "c"), check("c")])
    assert names(found) == ["b", "a"]


@pytest.mark.parametrize(
    ("verdict", "first"), [(Verdict.EASED, "b"), (Verdict.CURED, "b"), (Verdict.NO_EFFECT, "a"), (Verdict.WORSE, "a")]
)
def test_what_a_trial_eased_comes_before_what_stands_upstream(verdict, first):
    """A constant column and weights that start too small, say: of the weights it was seen that they do harm."""
    trial = Trial(verdict, (1.0,), (0.5,), 1, 0.1)
    tried = finding("b", fixes=(Fix("init", "Start larger.", trial=trial),))
    checks = [check("a", family="data"), check("b", family="signal")]
    assert names(rank([finding("a"), tried], checks))[0] == first


def test_nothing_gives_nothing():
    assert rank([], [check("a")]) == ()


def test_a_finding_of_an_unknown_check_is_kept():
    assert names(rank([finding("zz")], [])) == ["zz"]


findings = st.lists(
    st.builds(
        finding,
        st.sampled_from(NAMES),
        st.sampled_from(Severity),
        certainty=st.sampled_from(Certainty),
        first_step=st.none() | st.integers(0, 20),
        share=st.sampled_from([0.0, 0.5, 1.0]),
        places=st.sampled_from([(), ("x",), ("y",)]),
    ),
    max_size=9,
)
graphs = st.fixed_dictionaries({name: st.sets(st.sampled_from(NAMES), max_size=3) for name in NAMES})


def flat(found) -> list[Finding]:
    """All findings, taken apart again, without their severity (a cause may have been raised)."""
    every = [part for root in found for part in (dataclasses.replace(root, symptoms=()), *root.symptoms)]
    return sorted((dataclasses.replace(f, severity=Severity.ERROR) for f in every), key=repr)


@settings(max_examples=200, deadline=None)
@given(findings, graphs, st.randoms(use_true_random=False))
def test_nothing_is_lost_doubled_hidden_or_left_to_chance(found, graph, random):
    checks = [check(name, *explains) for name, explains in graph.items()]
    ranked = rank(found, checks)
    assert flat(ranked) == flat(found)
    mixed = list(found)
    random.shuffle(mixed)
    random.shuffle(checks)
    assert rank(mixed, checks) == ranked
    gravest = [min((f, *f.symptoms), key=lambda x: x.severity.rank).severity for f in ranked]
    assert [f.severity for f in ranked] == gravest
    assert [f.severity.rank for f in ranked] == sorted(f.severity.rank for f in ranked)
