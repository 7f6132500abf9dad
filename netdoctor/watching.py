"""The Python door: `watch` as a `with` block, as a decorator, or from `start()` to `stop()`."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from netdoctor import catalogue, excerpts
from netdoctor.errors import MisuseError
from netdoctor.finding import Finding, Severity
from netdoctor.judging import Options, diagnose
from netdoctor.recording import Recording
from netdoctor.report import Report
from netdoctor.session import FindingError, Session
from netdoctor.writers import Writer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

P = ParamSpec("P")
R = TypeVar("R")
FIRST_LOOK = 8  # steps; then at twice as many each time, so that looking stays a small part of a long training
_WAYS = ("ignore", "warn", "raise")


class watch:
    """Watch a training: a `with` block, a decorator of the function that trains, or `start()` and `stop()`.

    `model` and `optimizer` are one of each or lists of them; without a model, all that trains in the process is watched.
    `on_finding`: "ignore"; "warn" (a Python warning per finding at the end); "raise" (a `FindingError` at the step that
    makes a NaN or Inf, else at the end with an error-level finding); or a function, called with each finding of at least
    a warning as soon as it shows (looked for at step 8, 16, 32, ...), once for each check and place. What that function
    raises reaches the training. `writer`: a TensorBoard `SummaryWriter` or a Weights & Biases run, which gets the curves
    and the findings beside your own. `exact`: read what every layer gives, in every step: a NaN or Inf is found even where it
    never reaches the loss or a gradient (an overflow that a sigmoid makes a 1 of). Costs about as much again as watching does.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module] | None = None,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        *,
        options: Options | None = None,
        on_finding: str | Callable[[Finding], object] = "ignore",
        writer: Any = None,
        exact: bool = False,
    ) -> None:
        self._models, self._optimizers = _models(model), _several(optimizer, "param_groups")
        if on_finding not in _WAYS and not callable(on_finding):
            raise MisuseError(f'on_finding must be "ignore", "warn", "raise" or a function, not {on_finding!r}')
        catalogue.load(*_chosen(options))  # a wrong name is said where it stands
        self._options = replace(options or Options(), exact=True) if exact else options
        self._on_finding = on_finding
        self._writer = None if writer is None else Writer(writer)
        self._session: Session | None = None
        self._running = False
        self._told: set[tuple[str, str | None]] = set()

    def start(self) -> watch:
        """Begin to watch, anew if it was stopped before."""
        if self._running:
            raise MisuseError("this watch is running already; stop() it first, or make another")
        self._session, self._told = Session(self._options), set()
        self._session.start()
        self._running = True
        for model in self._models:
            self._session.include(model)
        for optimizer in self._optimizers:
            self._session.include_optimizer(optimizer)
        if self._on_finding == "raise":
            self._session.raise_on_trip()
        if callable(self._on_finding) or self._writer is not None:
            self._session.after_step = self._look
        return self

    def stop(self, ended: str = "finished") -> watch:
        """Stop watching; `report()` then runs the experiments. Nothing happens where nothing runs."""
        if self._running:
            self._running = False
            self._needed().stop(ended)
            self._models, self._optimizers = [], []  # a doctor is kept for its report, not the model with it
            if self._writer is not None:
                self._writer.write(self.recording, self.report())
        return self

    def __enter__(self) -> watch:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop("finished" if error is None else f"raised {type(error).__name__}: {error}")
        if error is None:
            self.conclude()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """As a decorator: every call of the function is watched, and the report is on the last one."""
        models, optimizers = self._models, self._optimizers

        @functools.wraps(function)
        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            self._models, self._optimizers = models, optimizers
            with self:
                return function(*args, **kwargs)

        return watched

    def log(self, **scalars: float) -> None:
        """Add numbers of your own, such as `val_loss=...`, to the recording."""
        self._needed().log(**scalars)

    @property
    def recording(self) -> Recording:
        """What was observed; complete once it has stopped."""
        return self._needed().recording

    @property
    def follows(self) -> bool:
        """Whether this is one of several processes and not the first, which reports for all."""
        return self._needed().follows

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What has been found by now, most important first: without experiments until `report()` has run them."""
        return self._needed().findings()

    def report(self) -> Report:
        """The report: passive and as of now while it watches, with experiments after that."""
        session = self._needed()
        if self._running:
            session.findings()
            return diagnose(session.recording, session.options)
        return session.report()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save recording and report: `netdoctor report PATH` and `netdoctor.diagnose(PATH)` open it, without torch.

        Raises MisuseError where the path cannot be written.
        """
        from netdoctor import recordingfile
        from netdoctor.render.atomic import write_text

        report = self.report()
        self.recording.excerpts = excerpts.gather(self.recording, report)
        write_text(path, "".join(recordingfile.lines(self.recording, report)))

    def _repr_html_(self) -> str:
        """The HTML report in a notebook, in a frame of its own."""
        from netdoctor.render import html

        if self._session is None:
            return "<p>netdoctor: nothing was watched yet</p>"
        report = self.report()
        self.recording.excerpts = excerpts.gather(self.recording, report)
        page = escape(html.render(report, self.recording), quote=True)
        style = "width: 100%; height: 80vh; border: 1px solid #8888"
        return f'<iframe title="netdoctor report" sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'

    def _needed(self) -> Session:
        if self._session is None:
            raise MisuseError("nothing was watched yet: use `with watch(model):`, or call start() first")
        return self._session

    def _look(self, steps: int) -> None:
        """After step 8, 16, 32, ...: write the curves, and tell what is new."""
        if steps < FIRST_LOOK or steps & (steps - 1):
            return
        findings = self._needed().findings()
        if self._writer is not None:
            self._writer.write(self.recording, diagnose(self.recording, self._options))
        self._tell(findings)

    def _tell(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            known = finding.check, finding.location.module
            if callable(self._on_finding) and finding.severity is not Severity.ADVICE and known not in self._told:
                self._told.add(known)
                self._on_finding(finding)

    def conclude(self) -> None:
        """Speak up about what was found, as `on_finding` says; the end of a block does so by itself."""
        if self._on_finding == "ignore":
            return
        findings = self.report().at_least(Severity.WARNING)
        if self._on_finding == "warn":
            for finding in findings:
                warnings.warn(f"netdoctor: {finding.title} ({finding.check})", stacklevel=3)
        elif self._on_finding == "raise":
            if findings and findings[0].severity is Severity.ERROR:
                raise FindingError(findings[0])
        else:
            self._tell(findings)


def _chosen(options: Options | None) -> tuple[Any, ...]:
    options = options or Options()
    return options.select, options.ignore, options.thresholds


def _models(given: Any) -> list[Any]:
    models = _several(given, "named_parameters")
    for model in models:
        if isinstance(model, type) or not callable(getattr(model, "named_parameters", None)):
            raise MisuseError(f"watch needs a torch.nn.Module, not {type(model).__name__}")
    return models


def _several(given: Any, mark: str) -> list[Any]:
    """One thing, or several, or none, as a list; `mark` is an attribute that one of them has."""
    if given is None:
        return []
    many = isinstance(given, Iterable) and not hasattr(given, mark) and not isinstance(given, str)
    return list(given) if many else [given]
