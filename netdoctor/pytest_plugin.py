"""The pytest plugin: `--netdoctor`, `@pytest.mark.netdoctor(...)` and the fixture `netdoctor`.

Loading it imports no torch, and a test that uses none of the three costs one look-up of a marker.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from netdoctor.config import Settings
    from netdoctor.finding import Finding, Severity
    from netdoctor.recording import Recording
    from netdoctor.report import Report

_SETTINGS: dict[str, Literal["args", "string", "bool"]] = {
    "select": "args",
    "ignore": "args",
    "fail_on": "string",
    "budget": "string",
    "experiments": "bool",
}
_VERDICT, _FINDING = "netdoctor_verdict", "netdoctor"  # properties of a test
_MARKER = "netdoctor(select, ignore, fail_on, budget, experiments): watch the test and fail it on findings"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The flag that watches every test, and the settings of a pytest.ini."""
    group = parser.getgroup("netdoctor")
    group.addoption("--netdoctor", action="store_true", help="watch every test that trains, and fail it on findings")
    parser.addini("netdoctor", "watch every test, as --netdoctor does", type="bool", default=False)
    for name, kind in _SETTINGS.items():
        parser.addini(f"netdoctor_{name}", f"as {name} of the marker", type=kind, default=None)


def pytest_configure(config: pytest.Config) -> None:
    """The marker's entry in `pytest --markers`."""
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Watch a marked test, or any under `--netdoctor`; the report becomes a section of it, and findings fail it."""
    markers = list(item.iter_markers("netdoctor"))
    if not markers and not item.config.getoption("netdoctor") and not item.config.getini("netdoctor"):
        return (yield)
    settings = _settings(item)
    from netdoctor.judging import Options
    from netdoctor.session import Session

    engine = Session(Options(**settings.engine(), target=item.nodeid))
    engine.start()
    try:
        result = yield
    except BaseException as error:
        engine.stop(f"raised {type(error).__name__}")
        _attach(item, engine.report(), settings)
        raise
    engine.stop()
    report = engine.report()
    _attach(item, report, settings)
    _fail_on(settings.failing(report), pytrace=False)  # no line of the test is to blame
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was watched and found in all tests, of all workers: nothing where no test was watched."""
    found: dict[str, list[str]] = {}
    watched = 0
    for outcome in ("passed", "failed", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, ()):
            verdicts = [value for name, value in getattr(report, "user_properties", ()) if name == _VERDICT]
            watched += len(verdicts)
            for name, value in report.user_properties if verdicts else ():
                if name == _FINDING:
                    found.setdefault(str(value).partition(":")[0], []).append(report.nodeid)
    if not watched:
        return
    terminalreporter.section("netdoctor")
    terminalreporter.line(f"{watched} {'training' if watched == 1 else 'trainings'} watched, {_sum_up(found)}")
    for check in sorted(found, key=lambda name: (-len(found[name]), name)):
        tests = list(dict.fromkeys(found[check]))
        more = f" and {len(tests) - 3} more" if len(tests) > 3 else ""
        terminalreporter.line(f"  {check}: {', '.join(tests[:3])}{more}")


def _sum_up(found: Mapping[str, list[str]]) -> str:
    findings = sum(map(len, found.values()))
    return f"{findings} {'finding' if findings == 1 else 'findings'}" if findings else "nothing found"


@pytest.fixture(name="netdoctor")
def netdoctor_fixture(request: pytest.FixtureRequest) -> Iterator[Doctor]:
    """Watches or examines a model for a test: see `Doctor`."""
    doctor = Doctor(_settings(request.node), request.node.nodeid)
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

    def watch(self, model: Any = None, optimizer: Any = None) -> Doctor:
        """Watch this model (or several, or all): until the `with` block, `assert_healthy()` or the test ends."""
        from netdoctor.watching import watch

        self.close()
        self._watched = self._open.enter_context(watch(model, optimizer, options=self._options()))
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
        from netdoctor import assertions

        report, _ = self._examined((model, loss_fn, batch, optimizer), steps, experiments=to is None)
        problem = assertions.not_fitted(report) if to is None else assertions.not_reached(report, to)
        _fail_with(problem, report.at_least(_warning()))
        return report

    def assert_finite(
        self,
        model: Any = None,
        loss_fn: Any = None,
        batch: Any = None,
        optimizer: Any = None,
        *,
        steps: int | None = None,
    ) -> Report:
        """Fail at the first NaN or Inf in activations, gradients, weights or loss; without arguments, of what was watched."""
        __tracebackhide__ = True
        from netdoctor import assertions

        report, recording = self._examined((model, loss_fn, batch, optimizer), steps)
        _fail_with(assertions.not_finite(recording), assertions.about_finiteness(report))
        return report

    def assert_all_parameters_learn(
        self,
        model: Any = None,
        loss_fn: Any = None,
        batch: Any = None,
        optimizer: Any = None,
        *,
        exempt: Sequence[str] = (),
        steps: int | None = None,
    ) -> Report:
        """Fail unless every parameter gets a gradient and is changed by it; without arguments, of what was watched.

        `exempt` holds globs of names that may stay as they are: `exempt=["backbone.*"]` for a frozen backbone.
        """
        __tracebackhide__ = True
        from netdoctor import assertions

        report, recording = self._examined((model, loss_fn, batch, optimizer), steps)
        _fail_with(assertions.not_learning(recording, exempt), report.findings)
        return report

    def assert_no_leakage(self, model: Any, *batch: Any, dim: int = 0) -> None:
        """Fail when the output for one sample depends on the others of its batch (samples lie along `dim`).

        `batch` is what the model takes (a tensor, a tuple of them, a dict), or `loss_fn, (inputs, target)`.
        """
        __tracebackhide__ = True
        self._probe("leakage", model, batch, dim=dim)

    def assert_causal(self, model: Any, *batch: Any, dim: int = 1) -> None:
        """Fail when an output depends on inputs at later positions (positions lie along `dim`); `batch` as above."""
        __tracebackhide__ = True
        self._probe("looking_ahead", model, batch, dim=dim)

    def assert_deterministic_eval(self, model: Any, *batch: Any) -> None:
        """Fail when two passes in evaluation mode over the same batch differ; `batch` as above."""
        __tracebackhide__ = True
        self._probe("unrepeatable", model, batch)

    def _probe(self, question: str, model: Any, batch: tuple[Any, ...], **options: Any) -> None:
        __tracebackhide__ = True
        from netdoctor import assertions
        from netdoctor.errors import MisuseError
        from netdoctor.experiments import probes

        if len(batch) not in (1, 2):
            pytest.fail("this takes a model and a batch, or a model, a loss function and a batch")
        try:
            finding = getattr(probes, question)(model, batch[-1], **options)
            problem = "" if finding is None else assertions.message(finding)
        except MisuseError as error:
            problem = str(error)
        if problem:
            pytest.fail(problem)

    def _examined(
        self, given: tuple[Any, ...], steps: int | None, experiments: bool = False
    ) -> tuple[Report, Recording]:
        """Report and recording of a model that is given, or of what was watched."""
        __tracebackhide__ = True
        if given[0] is None:
            report, recording = self.report(), self._need_watch().recording
        else:
            from netdoctor import session

            options = self._options(experiments=experiments)
            report, recording = session.examined(*given, steps=steps, options=options)
        _fail_unobserved(report)
        return report, recording

    def _options(self, **changed: Any) -> Any:
        from netdoctor.judging import Options

        return Options(**(self._settings.engine() | changed), target=self._target)

    def _need_watch(self) -> Any:
        __tracebackhide__ = True
        if self._watched is None:
            pytest.fail("nothing was watched: call netdoctor.watch(model, optimizer) first, or give a model")
        return self._watched


def _settings(item: pytest.Item) -> Settings:
    """The project's settings with those of pytest's ini file and of the markers. A wrong one fails the test in one line."""
    from netdoctor import catalogue
    from netdoctor.config import load
    from netdoctor.errors import MisuseError

    try:
        settings = load(item.config.rootpath).changed(**_from_ini(item.config))
        for marker in reversed(list(item.iter_markers("netdoctor"))):  # the closest one last, so that it wins
            unknown = sorted(set(marker.kwargs) - set(_SETTINGS))
            if unknown or marker.args:
                what = repr(unknown[0]) if unknown else "place for unnamed values"
                raise MisuseError(f"the marker netdoctor has no {what}: there are {', '.join(_SETTINGS)}")
            settings = settings.changed(**marker.kwargs)
        catalogue.load(settings.select, settings.ignore, settings.thresholds)
        return settings
    except MisuseError as error:
        pytest.fail(str(error), pytrace=False)


def _from_ini(config: pytest.Config) -> dict[str, Any]:
    from netdoctor.errors import MisuseError

    given = {name: config.getini(f"netdoctor_{name}") for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value not in (None, "", [])}
    if "budget" in given:
        try:
            given["budget"] = float(given["budget"])
        except ValueError:
            raise MisuseError(f"netdoctor_budget must be a number of seconds, not {given['budget']!r}") from None
    return given


def _attach(item: pytest.Item, report: Report, settings: Settings) -> None:
    """Add the report to the test: a section of its output, and properties for JUnit and the summary."""
    from netdoctor.render import terminal

    if report.verdict == "not observed":
        return
    page = io.StringIO()
    terminal.print_report(report, page, width=100, color=False, advice=settings.advice)
    item.add_report_section("call", "netdoctor", page.getvalue())
    item.user_properties.append((_VERDICT, report.verdict))
    shown = report.findings if settings.advice else report.at_least(_warning())
    item.user_properties += [(_FINDING, f"{finding.check}: {finding.title}") for finding in shown]


def _warning() -> Severity:
    from netdoctor.finding import Severity

    return Severity.WARNING


def _fail_on(findings: tuple[Finding, ...], pytrace: bool = True) -> None:
    __tracebackhide__ = True
    if findings:
        from netdoctor import assertions

        more = len(findings) - 1
        pytest.fail(assertions.message(findings[0]) + (f"\n({more} more below it)" if more else ""), pytrace=pytrace)


def _fail_with(problem: str, likely: Sequence[Finding]) -> None:
    """Fail with a sentence, and with the first finding that may be behind it."""
    __tracebackhide__ = True
    if problem:
        from netdoctor import assertions

        pytest.fail("\n".join([problem, *(f"likely cause: {assertions.message(finding)}" for finding in likely[:1])]))


def _fail_unobserved(report: Report) -> None:
    __tracebackhide__ = True
    if report.verdict == "not observed":
        pytest.fail("; ".join(("netdoctor saw no training step, so it cannot tell", *report.blind_spots)))
