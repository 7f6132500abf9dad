from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from types import ModuleType, SimpleNamespace

import pytest

from netdoctor import catalogue
from netdoctor.check import Check
from netdoctor.errors import MisuseError
from netdoctor.finding import Finding, Location, Severity


@dataclass(frozen=True)
class Alpha(Check):
    name = "alpha-rises"
    share: float = 0.5
    steps: int = 4
    strict: bool = False
    kinds: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Beta(Check):
    name = "beta-falls"


@pytest.fixture
def two(monkeypatch):
    """A catalogue of two checks."""
    found = SimpleNamespace(checks=(Alpha(), Beta()), crashes=())
    monkeypatch.setattr(catalogue, "_found", lambda: found)


@pytest.fixture
def points(monkeypatch):
    """Lets a test declare entry points, as (name, what loading gives or raises)."""

    def declare(*given):
        def point(name, thing):
            def load():
                if isinstance(thing, Exception):
                    raise thing
                return thing

            return SimpleNamespace(name=name, value=f"plugin:{name}", load=load)

        monkeypatch.setattr(catalogue, "entry_points", lambda group: [point(*g) for g in given])
        catalogue._found.cache_clear()

    yield declare
    catalogue._found.cache_clear()


def finding(check: str = "alpha-rises", places=(), module: str | None = None) -> Finding:
    return Finding(check, "t", Severity.ERROR, "e", Location(module=module), places=places)


def named(checks) -> list[str]:
    return [check.name for check in checks]


def test_all_built_in_checks_load():
    assert catalogue.crashes() == ()
    found = named(catalogue.all_checks())
    assert found == sorted(set(found))
    assert {"learning-rate-too-high", "cannot-overfit-tiny-batch"} <= set(found)


def test_without_wishes_all_are_loaded(two):
    assert named(catalogue.load()) == ["alpha-rises", "beta-falls"]


def test_select_and_ignore_by_name(two):
    assert named(catalogue.load(select=["beta-falls"])) == ["beta-falls"]
    assert named(catalogue.load(ignore=["beta-falls"])) == ["alpha-rises"]
    assert named(catalogue.load(select=["beta-falls"], ignore=["beta-falls"])) == []


def test_a_glob_keeps_the_check_running(two):
    assert named(catalogue.load(ignore=["beta-falls:head.*"])) == ["alpha-rises", "beta-falls"]
    assert named(catalogue.load(select=["beta-falls:head.*"])) == ["beta-falls"]


@pytest.mark.parametrize("how", ["select", "ignore"])
@pytest.mark.parametrize("wrong", ["alpha-rise", "alpha_rises", "alpha-rise:body.*"])
def test_an_unknown_name_is_answered_with_the_nearest(two, how, wrong):
    with pytest.raises(MisuseError, match="did you mean 'alpha-rises'"):
        catalogue.load(**{how: [wrong]})


def test_a_name_near_to_none_is_answered_without_a_guess(two):
    with pytest.raises(MisuseError) as error:
        catalogue.load(select=["zzz"])
    assert "did you mean" not in str(error.value)


def test_thresholds_are_replaced_in_the_type_of_their_default(two):
    (alpha, _) = catalogue.load(thresholds={"alpha-rises": {"share": 1, "steps": 9.0, "kinds": ["b", "c"]}})
    assert alpha == Alpha(1.0, 9, False, ("b", "c"))
    assert [type(getattr(alpha, f.name)) for f in fields(alpha)] == [float, int, bool, tuple]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"shares": 1.0}, "alpha-rises has no threshold 'shares', did you mean 'share'"),
        ({"qqq": 1.0}, "it has share, steps, strict, kinds"),
        ({"share": "big"}, "alpha-rises.share must be of type float"),
        ({"share": True}, "must be of type float"),
        ({"share": float("nan")}, "must be of type float"),
        ({"steps": 1.5}, "must be of type int"),
        ({"steps": float("inf")}, "must be of type int"),
        ({"strict": 1}, "must be of type bool"),
        ({"kinds": "b"}, "must be of type tuple"),
    ],
)
def test_a_wrong_threshold_is_said_plainly(two, values, says):
    with pytest.raises(MisuseError) as error:
        catalogue.load(thresholds={"alpha-rises": values})
    assert says in str(error.value)


def test_thresholds_of_an_unknown_check(two):
    with pytest.raises(MisuseError, match="did you mean 'beta-falls'"):
        catalogue.load(thresholds={"beta-fall": {}})


@pytest.mark.parametrize(
    ("pattern", "places", "module", "ignored"),
    [
        ("alpha-rises", (), None, True),
        ("beta-falls", (), None, False),
        ("alpha-rises:body.*", (), "body.3", True),
        ("alpha-rises:body.*", (), "head", False),
        ("alpha-rises:body.*", (), None, False),
        ("alpha-rises:*", (), None, True),
        ("alpha-rises:body.*", ("body.1", "body.2"), "body.1", True),
        ("alpha-rises:body.*", ("body.1", "head"), "body.1", False),
    ],
)
def test_ignored_findings(pattern, places, module, ignored):
    assert catalogue.is_ignored(finding(places=places, module=module), [pattern]) is ignored


def test_nothing_is_ignored_by_nothing():
    assert not catalogue.is_ignored(finding(), [])


@pytest.mark.parametrize(
    ("select", "selected"),
    [
        ([], True),
        (["alpha-rises"], True),
        (["alpha-rises:head"], False),
        (["alpha-rises:body.*"], True),
        (["beta-falls:x"], True),
        (["alpha-rises:x", "alpha-rises:head.1"], True),
    ],
)
def test_selected_findings(select, selected):
    assert catalogue.is_selected(finding(places=("body.1", "head.1")), select) is selected


def test_an_entry_point_may_name_a_class_or_a_module(points):
    module = ModuleType("plugin_checks")
    own = dataclass(frozen=True)(type("Own", (Check,), {"name": "own", "__module__": "plugin_checks"}))
    module.Own, module.Check, module.Beta, module.number = own, Check, Beta, 3
    points(("class", Alpha), ("module", module))
    found = set(named(catalogue.all_checks()))
    assert {"alpha-rises", "own"} <= found
    assert "beta-falls" not in found  # imported there, not defined there
    assert catalogue.crashes() == ()


@pytest.mark.parametrize(
    ("thing", "error"),
    [
        (ImportError("no torch_geometric"), "ImportError: no torch_geometric"),
        (42, "TypeError: 42 is neither"),
        (Check, "ValueError: Check has no name"),
        (type("Copy", (Beta,), {"name": "learning-rate-too-high"}), "'learning-rate-too-high' is taken"),
    ],
)
def test_an_entry_point_that_does_not_work_is_a_crash(points, thing, error):
    points(("broken", thing), ("fine", Beta))
    assert "beta-falls" in named(catalogue.all_checks())
    (crash,) = catalogue.crashes()
    assert crash.where == "entry point broken = plugin:broken"
    assert error in crash.error


def test_a_check_of_the_package_keeps_its_name_against_plugins(points):
    points(("thief", type("Thief", (Beta,), {"name": "learning-rate-too-high"})))
    (kept,) = catalogue.load(select=["learning-rate-too-high"])
    assert kept.family == "training"


def test_loading_imports_no_torch_of_its_own():
    for module in [name for name in sys.modules if name.startswith("netdoctor.checks.")]:
        assert "torch" not in vars(sys.modules[module])
