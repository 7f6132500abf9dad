"""What the callbacks have in common: watching from the start of a training to its end, and telling what was found."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from netdoctor import outputs
from netdoctor.errors import NetdoctorError
from netdoctor.finding import Finding
from netdoctor.judging import Options
from netdoctor.render import terminal
from netdoctor.report import Report
from netdoctor.watching import watch


class Attending:
    """Watches one training. `files` maps formats ("html", "json", "save", ...) to paths, tried before the training.

    The report goes to stderr at the end, unless `quiet`. A fault in here never ends the training; a path that cannot be
    written raises MisuseError when the callback is made.
    """

    def __init__(
        self,
        options: Options | None,
        on_finding: str | Callable[[Finding], object],
        writer: Any,
        quiet: bool,
        files: dict[str, str | None],
    ) -> None:
        self._options, self._on_finding, self._writer, self._quiet = options, on_finding, writer, quiet
        self._files = outputs.planned(files)
        self.doctor = watch(options=options, on_finding=on_finding, writer=writer)
        self.running = False

    def begin(self, models: Iterable[Any], optimizers: Iterable[Any]) -> None:
        """Begin to watch; a second training of the same trainer gets a report of its own."""
        self.end("stopped by another training")
        self.doctor = watch(
            list(models),
            [_bare(optimizer) for optimizer in optimizers],
            options=self._options,
            on_finding=self._on_finding,
            writer=self._writer,
        )
        self.doctor.start()
        self.running = True

    def log(self, values: dict[str, Any]) -> None:
        """Keep the numbers among the trainer's own metrics."""
        if self.running:
            self.doctor.log(**{name: value for name, value in values.items() if isinstance(value, int | float)})

    def end(self, ended: str = "finished") -> None:
        """Stop, run the experiments, and tell: in the first of several processes only."""
        if not self.running:
            return
        self.running = False
        try:
            self.doctor.stop(ended)
            if not self.doctor.follows:
                self._tell()
        except Exception as fault:  # ours, and no reason to lose a training over it
            _say(f"a fault of netdoctor itself, please report it: {type(fault).__name__}: {fault}")
            return
        if not self.doctor.follows:
            self.doctor.conclude()

    def _tell(self) -> None:
        report = self.doctor.report()
        if not self._quiet:
            with contextlib.suppress(OSError, ValueError):
                terminal.print_report(report, sys.stderr)
        for file in self._files:
            try:
                file.write(report, self.doctor.recording, False)
            except NetdoctorError as error:
                _say(str(error))

    @property
    def report(self) -> Report:
        """The report on the last training, or on the running one so far. Raises MisuseError before the first."""
        return self.doctor.report()


def _bare(optimizer: Any) -> Any:
    """The torch optimizer inside of what accelerate or Lightning wrapped around it."""
    for _ in range(4):
        inner = vars(optimizer).get("optimizer", vars(optimizer).get("_optimizer"))
        if not hasattr(inner, "param_groups"):
            break
        optimizer = inner
    return optimizer


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"netdoctor: {text}\n")
