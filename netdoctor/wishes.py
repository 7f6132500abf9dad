"""What one call of the command line asks for, its options, and handing over what came of it. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from netdoctor import config, outputs
from netdoctor.config import FAIL_ON, Settings
from netdoctor.errors import MisuseError, NetdoctorError

if TYPE_CHECKING:
    from netdoctor.check import Check
    from netdoctor.judging import Options
    from netdoctor.recording import Recording
    from netdoctor.report import Report

Command = TypeVar("Command", bound=Callable[..., Any])
_FILES: dict[str, str] = {
    "json": "Write the report as JSON, format 1.",
    "html": "Write the report as one HTML file with plots.",
    "markdown": "Write the report as Markdown.",
    "junit": "Write the report as JUnit XML.",
    "sarif": "Write the report as SARIF, for code scanning.",
    "save": "Save the recording; `netdoctor report PATH` judges it again.",
}


def running_options(command: Command) -> Command:
    """The options of a command that trains something, on top of those that judge it."""
    steps = click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Stop after N optimizer steps.")
    budget = click.option("--budget", type=click.FloatRange(min=0), metavar="SECONDS", help="For experiments: 60.")
    without = click.option("--no-experiments", is_flag=True, help="Judge only by what was recorded.")
    exact = click.option("--exact", is_flag=True, help="Read every layer's output in every step, for NaN and Inf.")
    return steps(file_options(outputs.FORMATS)(judging_options(budget(without(exact(command))))))


def file_options(formats: Sequence[str]) -> Callable[[Command], Command]:
    """One option per kind of file that a command can write."""

    def decorated(command: Command) -> Command:
        for form in reversed(formats):
            command = click.option(f"--{form}", metavar="PATH", help=_FILES[form])(command)
        return command

    return decorated


def judging_options(command: Command) -> Command:
    """The options of a command that judges a recording."""
    for option in reversed(
        (
            click.option("--select", multiple=True, metavar="NAME", help="Run only this check (may be repeated)."),
            click.option(
                "--ignore", multiple=True, metavar="NAME[:LAYER-GLOB]", help="Leave out this check, or there."
            ),
            click.option(
                "--threshold", multiple=True, metavar="NAME.LIMIT=NUMBER", help="Another limit (see `explain NAME`)."
            ),
            click.option(
                "--advice", is_flag=True, default=None, help="Show findings that are only worth knowing, too."
            ),
            click.option("--fail-on", type=click.Choice(FAIL_ON), help="The finding that makes the exit code 1."),
            click.option(
                "--github/--no-github",
                default=None,
                help="GitHub annotations on stderr; on by itself in GitHub Actions.",
            ),
            click.option("-q", "--quiet", is_flag=True, help="No report and no progress on stderr."),
            click.option("-v", "--verbose", is_flag=True, help="Show every detail of the report."),
        )
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one call asks for, options and project settings put together."""

    settings: Settings
    files: tuple[outputs.Output, ...]
    steps: int | None
    quiet: bool
    verbose: bool
    github: bool
    stderr: TextIO  # as it was before the script could replace it
    exact: bool = False

    @classmethod
    def gather(cls, folder: Path, **given: Any) -> Wishes:
        """Check everything that can be checked before the run. Raises MisuseError for what cannot be done."""
        files = {form: given.pop(form, None) for form in outputs.FORMATS}
        steps, quiet, verbose = given.pop("steps", None), given.pop("quiet"), given.pop("verbose")
        github, exact = given.pop("github"), given.pop("exact", False)
        if github is None:
            github = os.environ.get("GITHUB_ACTIONS") == "true" and not quiet
        settings = config.load(folder).changed(**_spelled_out(given))
        chosen_checks(settings)
        return cls(settings, outputs.planned(files), steps, quiet, verbose, github, sys.stderr, exact)

    def engine(self, target: str) -> Options:
        """What the engine is asked for."""
        from netdoctor.judging import Options

        options = Options(**self.settings.engine(), steps=self.steps, target=target, progress=not self.quiet)
        return replace(options, exact=self.exact)


def _spelled_out(given: dict[str, Any]) -> dict[str, Any]:
    """The options by the names of the settings; those that were not given are None."""
    given["experiments"] = False if given.pop("no_experiments", False) else None
    given["thresholds"] = _limits(given.pop("threshold")) or None
    for several in ("select", "ignore"):
        given[several] = given[several] or None
    return given


def _limits(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """["dead-relu.error_share=0.6"] → {"dead-relu": {"error_share": 0.6}}."""
    limits: dict[str, dict[str, float]] = {}
    for text in texts:
        name, _, number = text.partition("=")
        check, _, limit = name.strip().partition(".")
        try:
            limits.setdefault(check, {})[limit] = float(number)
        except ValueError:
            raise MisuseError(f"--threshold {text!r} is not of the form NAME.LIMIT=NUMBER") from None
    return limits


def chosen_checks(settings: Settings) -> list[Check]:
    """The checks that these settings choose. Raises MisuseError for a name or threshold that does not exist."""
    from netdoctor import catalogue

    return catalogue.load(settings.select, settings.ignore, settings.thresholds)


def hand_over(report: Report, recording: Recording, wishes: Wishes) -> int:
    """Show the report on stderr, write its files, and give the exit code that its findings ask for."""
    observed = report.verdict != "not observed"
    if not observed:
        say(_unobserved(report, recording), wishes.stderr)
    if not wishes.quiet and (observed or report.crashes or wishes.verbose):
        from netdoctor.render import terminal

        terminal.print_report(report, wishes.stderr, verbose=wishes.verbose, advice=wishes.settings.advice)
    written = write_files(report, recording, wishes)
    if not observed or not written:
        return NetdoctorError.exit_code
    return 1 if wishes.settings.failing(report) else 0


def write_files(report: Report, recording: Recording | None, wishes: Wishes) -> bool:
    """Write the files that were asked for, and GitHub's annotations; False when one could not be written."""
    if wishes.github:
        from netdoctor.render import github

        with contextlib.suppress(OSError, ValueError):
            click.echo(github.render(report, advice=wishes.settings.advice), file=wishes.stderr, nl=False)
    written = [_written(file, report, recording, wishes) for file in wishes.files]
    return all(written)


def _written(file: outputs.Output, report: Report, recording: Recording | None, wishes: Wishes) -> bool:
    """Write one file and say so; one that cannot be written does not keep the others from it."""
    try:
        file.write(report, recording, wishes.settings.advice)
    except MisuseError as error:
        say(str(error), wishes.stderr)
        return False
    if not wishes.quiet:
        say(f"{file.label}: {file.given}", wishes.stderr)
    return True


def _unobserved(report: Report, recording: Recording) -> str:
    """Why there is no verdict, with what was seen instead of a training."""
    amounts = (
        (len(recording.layers), "layer was called", "layers were called"),
        (recording.counts.get("backward", 0), "backward pass was made", "backward passes were made"),
        (recording.counts.get("step", 0), "optimizer step was taken", "optimizer steps were taken"),
    )
    seen = ", ".join(f"{amount or 'no'} {one if amount < 2 else many}" for amount, one, many in amounts)
    ended = "" if report.ended == "finished" else f" ({report.ended})"
    return f"no training was seen in {report.target}{ended}, so there is no verdict: {seen}"


def say(text: str, stream: TextIO | None = None) -> None:
    """One line on stderr; never an error of its own, for the stream may be closed by now."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"netdoctor: {text}", file=stream or sys.stderr)
