"""The pytest plugin: `--netdoctor`, `@pytest.mark.netdoctor(...)` and the fixture `netdoctor`.

Loading it imports no torch, and a test that uses none of the three costs one look-up of a marker.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from netdoctor.config import Settings
    from netdoctor.finding import Finding
    from netdoctor.report import Report

_SETTINGS = ("select", "ignore", "fail_on", "budget", "experiments")
_MARKER = "netdoctor(select, ignore, fail_on, budget, experiments): watch the test and fail it on findings"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The flag that watches every test."""
    group = parser.getgroup("netdoctor")
    group.addoption("--netdoctor", action="store_true", help="watch every test that trains, and fail it on findings")


def pytest_configure(config: pytest.Config) -> None:
    """The marker's entry in `pytest --markers`."""
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Watch a marked test, or any under `--netdoctor`; the report becomes a section of it, and findings fail it."""
    marker = item.get_closest_marker("netdoctor")
    if marker is None and not item.config.getoption("netdoctor"):
        return (yield)
    settings = _settings(item.config, {} if marker is None else marker.kwargs)
    from netdoctor.judging import Options
    from netdoctor.session import Session

    engine = Session(Options(**settings.engine(), target=item.nodeid))
    engine.start()
    try:
        result = yield
    except BaseException as error:
        engine.stop(f"raised {type(error).__name__}")
        _attach(item, engine.report())
        raise
    engine.stop()
    report = engine.report()
    _attach(item, report)
    _fail_on(settings.failing(report), pytrace=False)  # no line of the test is to blame
    return result


@pytest.fixture(name="netdoctor")
def netdoctor_fixture(request: pytest.FixtureRequest) -> Iterator[Doctor]:
    """Watches or examines a model for a test: see `Doctor`."""
    marker = request.node.get_closest_marker("netdoctor")
    settings = _settings(request.config, {} if marker is None else marker.kwargs)
    doctor = Doctor(settings, request.node.nodeid)
    yield doctor
    doctor.close()


class Doctor:
    """What the fixture `netdoctor` gives.

    `with netdoctor.watch(model, optimizer): train()` and then `netdoctor.assert_healthy()`; or, without a training
    loop, `netdoctor.assert_healthy(model, loss_fn, batch)` and `netdoctor.assert_overfits(model, loss_fn, batch)`.
    """

    def __init__(self, settings: Settings, target: str) -> None:
        self._settings = settings
        self._target = target
        self._watched: Any = None
        self._open = ExitStack()

    def watch(self, model: Any, optimizer: Any = None) -> Doctor:
        """Watch this model from now until the `with` block ends, until `assert_healthy()`, or until the test ends."""
        from netdoctor import session

        self.close()
        self._watched = self._open.enter_context(session.watch(model, optimizer, options=self._options()))
        return self

    def close(self) -> None:
        """Stop watching."""
        self._open.close()

    def __enter__(self) -> Doctor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, **scalars: float) -> None:
        """Record numbers of the test's own, such as `val_loss`."""
        self._need_watch().log(**scalars)

    def report(self) -> Report:
        """The report on what was watched."""
        __tracebackhide__ = True
        self.close()
        report: Report = self._need_watch().report()
        return report

    def assert_healthy(
        self, model: Any = None, loss_fn: Any = None, batch: Any = None, optimizer: Any = None
    ) -> Report:
        """Fail with the first finding, its place and its fix; without arguments, on what was watched."""
        __tracebackhide__ = True
        if model is None:
            report = self.report()
        else:
            from netdoctor import session

            report = session.examine(model, loss_fn, batch, optimizer, options=self._options())
        _fail_unobserved(report)
        _fail_on(self._settings.failing(report))
        return report

    def assert_overfits(
        self,
        model: Any,
        loss_fn: Any,
        batch: Any,
        optimizer: Any = None,
        *,
        steps: int | None = None,
        to: float | None = None,
    ) -> Report:
        """Fail unless the model can learn this batch by heart.

        With `to`: a copy, trained for `steps` with the optimizer (Adam at its default without one), must get its loss
        that low. Without: the experiment decides, which knows the floor of a loss and tries several optimizer settings.
        """
        __tracebackhide__ = True
        from netdoctor import session
        from netdoctor.finding import Severity

        options = self._options(experiments=to is None)
        report = session.examine(model, loss_fn, batch, optimizer, steps=steps, options=options)
        _fail_unobserved(report)
        problem = _not_fitted(report) if to is None else _not_reached(report, to)
        if problem:
            likely = [f"likely cause: {_message(finding)}" for finding in report.at_least(Severity.WARNING)[:1]]
            pytest.fail("\n".join([problem, *likely]))
        return report

    def _options(self, **changed: Any) -> Any:
        from netdoctor.judging import Options

        return Options(**(self._settings.engine() | changed), target=self._target)

    def _need_watch(self) -> Any:
        __tracebackhide__ = True
        if self._watched is None:
            pytest.fail("nothing was watched: call netdoctor.watch(model, optimizer) first, or give a model")
        return self._watched


_OVERFIT = "overfit-tiny-batch"  # the experiment, by its name in the report


def _settings(config: pytest.Config, given: Mapping[str, Any]) -> Settings:
    """The project's settings with those of the marker. A wrong one fails the test in one line."""
    from netdoctor import catalogue
    from netdoctor.config import load
    from netdoctor.errors import MisuseError

    try:
        unknown = sorted(set(given) - set(_SETTINGS))
        if unknown:
            raise MisuseError(f"the marker netdoctor has no {unknown[0]!r}: there are {', '.join(_SETTINGS)}")
        settings = load(config.rootpath).changed(**given)
        catalogue.load(settings.select, settings.ignore, settings.thresholds)
        return settings
    except MisuseError as error:
        pytest.fail(str(error), pytrace=False)


def _attach(item: pytest.Item, report: Report) -> None:
    """Add the report to the test: a section of its output, and a property per finding for JUnit."""
    from netdoctor.render import terminal

    if report.verdict == "not observed":
        return
    page = io.StringIO()
    terminal.print_report(report, page, width=100, color=False)
    item.add_report_section("call", "netdoctor", page.getvalue())
    item.user_properties += [("netdoctor", f"{finding.check}: {finding.title}") for finding in report.findings]


def _fail_on(findings: tuple[Finding, ...], pytrace: bool = True) -> None:
    __tracebackhide__ = True
    if findings:
        more = len(findings) - 1
        pytest.fail(_message(findings[0]) + (f"\n({more} more below it)" if more else ""), pytrace=pytrace)


def _message(finding: Finding) -> str:
    """The finding's title, place and first fix."""
    from netdoctor.render import wording

    lines = [f"{finding.check}: {wording.clean(finding.title)}"]
    place = wording.place(finding.location)
    lines += [f"  at {place}"] if place else []
    for fix in finding.fixes[:1]:
        lines.append(f"  fix: {wording.clean(fix.says)}")
        lines += [f"    {line}" for line in wording.clean_code(fix.code).splitlines()]
    return "\n".join(lines)


def _fail_unobserved(report: Report) -> None:
    __tracebackhide__ = True
    if report.verdict == "not observed":
        pytest.fail("; ".join(("netdoctor saw no training step, so it cannot tell", *report.blind_spots)))


def _not_fitted(report: Report) -> str:
    """What the experiment says when it did not fit the batch, or why it could not tell; "" when it did fit it."""
    ran = [entry for entry in report.experiments if entry.name == _OVERFIT]
    if not ran:
        return "netdoctor could not tell whether the model fits this batch: the experiment did not run in its budget"
    return "" if ran[0].verdict == "passed" else f"{_OVERFIT} {ran[0].verdict}: {ran[0].says}"


def _not_reached(report: Report, limit: float) -> str:
    for label, (first, last) in report.losses.items():
        if not last <= limit:  # NaN is above every limit
            return f"{label} went from {first:.4g} to {last:.4g} in {report.steps} steps, not down to {limit:.4g}"
    return ""
