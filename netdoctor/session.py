"""One diagnosis from start to report: the one place that wires capture, experiments, checks and ranking."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor import __version__, catalogue, diagnosis, recordingfile
from netdoctor.capture.assembly import assemble, pulse
from netdoctor.capture.loading import LoaderClock
from netdoctor.capture.observer import Observer
from netdoctor.capture.origin import find_origin
from netdoctor.capture.ranks import Ranks
from netdoctor.capture.step import Copies, OptimizerStart, TrainingStep
from netdoctor.capture.taps import Taps
from netdoctor.errors import MisuseError, NetdoctorError
from netdoctor.experiments.plan import conduct, kept_for_trials
from netdoctor.experiments.sandbox import Budget, copied_optimizer, quiet
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Severity
from netdoctor.journal import PULSE, Journal
from netdoctor.judging import Options
from netdoctor.recording import Fault, Header, Recording
from netdoctor.report import Crash, Report

EXAMINED_STEPS = 30  # of a one-shot examination: the least that a trend is read from (trend.py)
MEASURED = 64  # of its steps, and at most twice as many; all of them where there are fewer


class EnoughSteps(BaseException):
    """Ends the user's script after the number of steps that was asked for; not an Exception, so that no script catches it."""


class FindingError(NetdoctorError):
    """Raised by `watch(on_finding="raise")`; `finding` is what was found."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.title)
        self.finding = finding


class Session:
    """Observes from `start` to `stop`, then reports. `recording` is what was observed. Where `every` is given, one step in so many
    is measured; else the first ones, and then ever fewer."""

    def __init__(self, options: Options | None = None, every: int | None = None) -> None:
        self.options = options or Options()
        self._checks = catalogue.load(self.options.select, self.options.ignore, self.options.thresholds)
        self._observer = Observer(every, exact=self.options.exact)
        self._observer.find_origin = find_origin
        self._taps = Taps(self._observer)
        self._ranks = Ranks(self._observer)
        self._clock = LoaderClock(self._observer, compares=self.options.experiments)
        self._step: TrainingStep | None = None
        self._report: Report | None = None
        self._ended = "finished"
        self._journal: Journal | None = None
        self.after_step: Callable[[int], None] | None = None  # told the steps taken; what it raises reaches the user
        self.recording = Recording()

    def start(self) -> None:
        """Begin to observe."""
        self._observer.on_step = self._stepped
        self._taps.install()
        self._observer.containment.run("comparison of ranks", self._ranks.install)
        self._observer.containment.run("data loading", self._clock.install)

    def keep(self, path: str | os.PathLike[str]) -> None:
        """Keep the recording up to date in a file while the training runs: a killed process loses its last second, not its run."""
        self._journal = Journal(path, recordingfile.head(__version__))

    def _write_journal(self, journal: Journal, steps: int) -> None:
        journal.write(lambda: pulse(self._observer), PULSE)
        if journal.due_in_full(self._observer.recorder.step):
            observed = self._observer, self._taps.training, self.options.target, __version__, "cut off"
            journal.write(lambda: assemble(*observed))
        if journal.failure:
            says = f"the recording on disk ends at step {steps}: {journal.failure}"
            self._observer.blind_spots.setdefault("journal", says)

    def _stepped(self, steps: int) -> None:
        if self._ranks.size > 1:
            self._ranks.stepped(steps)
        if self._journal is not None and self._journal.due() and not self.follows:
            self._observer.ours("journal", self._write_journal, self._journal, steps)
        if self.options.steps is not None and steps >= self.options.steps:
            raise EnoughSteps
        if self.after_step is not None:
            try:
                self.after_step(steps)
            except Exception as error:  # the user's own, of a callback: it is raised when our hooks are left
                self._observer.pending = error

    @property
    def follows(self) -> bool:
        """Whether this is one of several processes, and not the first of them, which reports for all."""
        return self._ranks.rank > 0

    def include(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Make known a model and an optimizer that were made before the observation began."""
        self._observer.names.add_root(model)
        self._ranks.include(model)
        if optimizer is not None:
            self.include_optimizer(optimizer)

    def include_optimizer(self, optimizer: Optimizer) -> None:
        """Make known an optimizer that was made before the observation began."""
        self._taps.training.made(optimizer)

    def raise_on_trip(self) -> None:
        """Raise a `FindingError` at the very step that makes a NaN or Inf: before the optimizer touches the weights, or right after
        it where it is the optimizer that makes it."""
        self._observer.on_trip = self._raise
        self._observer.watch_weights = True

    def _raise(self) -> None:
        found = [finding for finding in self.findings() if finding.severity is Severity.ERROR]
        if found:
            self._observer.pending = FindingError(found[0])

    def log(self, **scalars: float) -> None:
        """Add the user's own scalars to the recording."""
        self._observer.pattern.catch_up()  # which may have a scalar of that name
        for name, value in scalars.items():
            self._observer.recorder.scalar(name, self._observer.step, float(value))

    def stop(self, ended: str = "finished") -> None:
        """Stop observing; every hook and patch is removed."""
        self._taps.remove()
        self._ended = ended
        contained = self._observer.containment
        if self._journal is not None:
            contained.run("journal", self._journal.close)
        contained.run("comparison of ranks", self._ranks.close)
        contained.run("data loading", self._clock.close)
        contained.run("last read-back", self._observer.recorder.flush, self._observer.step)
        self._step = contained.run("captured step", self._captured)
        self._observe()
        # The user's models and batches are held by the captured step alone, until the report is made.
        contained.run("release of the tape", self._observer.tape.clear)
        contained.run("release of the captured step", self._observer.program.release)
        contained.run("release of the norms", self._taps.training.frozen_norms.release)
        contained.run("release of the datasets", self._clock.stored.release)
        contained.run("release of the evaluations", self._observer.evaluation.release)
        self.recording.faults = contained.faults

    def _captured(self) -> TrainingStep:
        norms = self._taps.training.frozen_norms.kept()
        held, changed = self._observer.evaluation.held(), self._clock.stored.changed
        return replace(self._observer.program.training_step(), held=held, norms=norms, changed=changed)

    def _observe(self) -> None:
        """Make the recording of what was seen so far; what fails in that is a row of the report."""
        contained, training = self._observer.containment, self._taps.training
        made = contained.run(
            "recording", assemble, self._observer, training, self.options.target, __version__, self._ended
        )
        self.recording = made or Recording(
            Header(self.options.target, __version__, ended=self._ended), self._observer.step
        )
        self.recording.faults = contained.faults
        self.recording.header = replace(self.recording.header, ranks=self._ranks.size)

    def findings(self) -> tuple[Finding, ...]:
        """What the recording so far shows, without experiments."""
        self._observe()
        return self._diagnose().findings

    def report(self) -> Report:
        """Run the experiments and judge everything. Ctrl-C ends the experiments and keeps the report."""
        if self._report is None:
            step, budget = self._step, Budget(self.options.budget)
            if not self.options.experiments or not self.recording.counts.get("backward"):
                step = None
            progress = _Progress(self.options.progress and step is not None)
            try:
                going_on = step is not None and self._experiment(step, progress)
                self._report = self._diagnose()
                if step is not None and going_on:
                    self._report = self._try_fixes(self._report, step, budget, progress)
            finally:
                progress.close()
            self._step = None  # lets go of the user's batches and models
        return self._report

    def _experiment(self, step: TrainingStep, progress: _Progress) -> bool:
        """Conduct the experiments; False when the user ended them."""
        try:
            seconds = self.options.budget
            share = 1 - kept_for_trials(step, seconds, self._diagnose)
            conduct(self.recording, step, share * seconds, progress.say)
        except KeyboardInterrupt:
            self.recording.blind_spots.append("the experiments were interrupted")
            return False
        except Exception as error:
            self.recording.faults.append(Fault("experiments", f"{type(error).__name__}: {error}"))
        return True

    def _try_fixes(self, report: Report, step: TrainingStep, budget: Budget, progress: _Progress) -> Report:
        names = self._observer.names
        try:
            places = Places(step, names.key_of, names.parameter_name)
            return try_fixes(report, self.recording, step, places, self._checks, budget, progress.say)
        except Exception as error:
            crash = Crash("trials of the fixes", f"{type(error).__name__}: {error}")
            return replace(report, crashes=(*report.crashes, crash))

    def _diagnose(self) -> Report:
        return diagnosis.diagnose(self.recording, self._checks, self.options.ignore, select=self.options.select)


class _Progress:
    """Says on stderr what is being tried: a spinner on a terminal, one line in a pipe."""

    def __init__(self, wanted: bool) -> None:
        self._status: Any = None
        if wanted and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("experiments on a copy")
            self._status.start()
        elif wanted:
            sys.stderr.write("netdoctor: experiments on a copy ...\n")

    def say(self, what: str) -> None:
        if self._status is not None:
            self._status.update(f"on a copy: {what}")

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()


def examine(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: Any,
    optimizer: Optimizer | None = None,
    *,
    steps: int | None = None,
    options: Options | None = None,
) -> Report:
    """Examine a model on one batch: a short training of a copy under observation, then experiments. The model is not touched.

    `batch` is a pair (inputs, target); inputs may be a tensor, a tuple (`model(*inputs)`) or a dict (`model(**inputs)`). The loss
    is `loss_fn(model(inputs), target)`. A batch that is no pair goes to the model whole, and the loss is `loss_fn(output)`.
    Without an optimizer, Adam with its default learning rate trains the copy.
    """
    return examined(model, loss_fn, batch, optimizer, steps=steps, options=options)[0]


def examined(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: Any,
    optimizer: Optimizer | None = None,
    *,
    steps: int | None = None,
    options: Options | None = None,
) -> tuple[Report, Recording]:
    """Like `examine`, with the recording that the report was made of."""
    if not isinstance(model, nn.Module):
        raise MisuseError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    if not callable(loss_fn):
        raise MisuseError(f"the loss function must be callable, not {type(loss_fn).__name__}")
    steps = steps or EXAMINED_STEPS
    session = Session(
        options, every=max(1, steps // MEASURED)
    )  # a short training by ourselves can be looked at closely
    with quiet():
        copied, trained = _copies(model, optimizer)
        session.start()
        session.include(copied, trained)
        ended = "finished"
        try:
            _train(copied, loss_fn, copy.deepcopy(batch), trained, steps)
        except EnoughSteps:
            pass
        except Exception as error:
            session.stop(f"raised {type(error).__name__}: {error}")
            raise
        session.stop(ended)
        report = session.report()
    return report, session.recording


def _copies(model: nn.Module, optimizer: Optimizer | None) -> tuple[nn.Module, Optimizer]:
    copies = Copies([model], [])
    copied: nn.Module = copies.of(model)
    if optimizer is None:
        return copied, torch.optim.Adam(p for p in copied.parameters() if p.requires_grad)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    state = {id(p): s for p, s in optimizer.state.items()}
    start = OptimizerStart(optimizer, groups, [list(g["params"]) for g in optimizer.param_groups], state)
    return copied, copied_optimizer(start, copies)


def _train(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any, optimizer: Optimizer, steps: int) -> None:
    model.train()
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    inputs, rest = (batch[0], (batch[1],)) if pair else (batch, ())
    for _ in range(steps):
        optimizer.zero_grad()
        output = (
            model(**inputs)
            if isinstance(inputs, dict)
            else model(*inputs)
            if isinstance(inputs, tuple)
            else model(inputs)
        )
        loss = loss_fn(output, *rest)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise MisuseError("the loss function must return one number as a tensor")
        loss.backward()
        optimizer.step()
