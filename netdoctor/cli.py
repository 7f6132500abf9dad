"""The command line. Reports go to stderr and to the files asked for; stdout is the script's. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from netdoctor import __version__, config, launch, outputs
from netdoctor.config import FAIL_ON, Settings
from netdoctor.errors import MisuseError, NetdoctorError

if TYPE_CHECKING:
    from netdoctor.check import Check
    from netdoctor.factory import Example
    from netdoctor.launch import Outcome, Program
    from netdoctor.recording import Recording
    from netdoctor.report import Report
    from netdoctor.session import Session

Command = TypeVar("Command", bound=Callable[..., Any])
_BY_SIGINT = 130


class _Refusal(click.ClickException):
    """One clear line on stderr and exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        _say(self.message)


class _Doors(click.Group):
    """All commands: what netdoctor refuses on purpose becomes one line, Ctrl-C the shell's usual exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NetdoctorError as error:
            raise _Refusal(str(error)) from None
        except KeyboardInterrupt:
            sys.exit(_BY_SIGINT)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What one call asks for, options and project settings put together."""

    settings: Settings
    files: tuple[outputs.Output, ...]
    steps: int | None
    quiet: bool
    verbose: bool
    stderr: TextIO  # as it was before the script could replace it

    @classmethod
    def gather(cls, folder: Path, **given: Any) -> _Wishes:
        """Check everything that can be checked before the run. Raises MisuseError for what cannot be done."""
        files = {form: given.pop(form) for form in outputs.FORMATS}
        steps, quiet, verbose = given.pop("steps"), given.pop("quiet"), given.pop("verbose")
        settings = config.load(folder).changed(**given)
        _chosen_checks(settings)
        return cls(settings, outputs.planned(files), steps, quiet, verbose, sys.stderr)

    def engine(self, target: str) -> Any:
        """The options of the session."""
        from netdoctor.session import Options

        return Options(**self.settings.engine(), steps=self.steps, target=target, progress=not self.quiet)


@click.group(cls=_Doors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="netdoctor")
def main() -> None:
    """Find out why a PyTorch training does not work: root causes, proven by experiments on a copy.

    Exit code: 0 nothing at the level of --fail-on, 1 findings, 2 netdoctor could not do what was asked; a script that
    fails keeps its own.
    """


def _options(command: Command) -> Command:
    """The options that every command which judges a training has."""
    for option in reversed(
        (
            click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Stop after N optimizer steps."),
            click.option("--json", metavar="PATH", help="Write the report as JSON, format 1."),
            click.option("--html", metavar="PATH", help="Write the report as one HTML file with plots."),
            click.option("--markdown", metavar="PATH", help="Write the report as Markdown."),
            click.option("--junit", metavar="PATH", help="Write the report as JUnit XML."),
            click.option("--sarif", metavar="PATH", help="Write the report as SARIF, for code scanning."),
            click.option("--select", multiple=True, metavar="NAME", help="Run only this check (may be repeated)."),
            click.option(
                "--ignore", multiple=True, metavar="NAME[:LAYER-GLOB]", help="Leave out this check, or there."
            ),
            click.option(
                "--advice", is_flag=True, default=None, help="Show findings that are only worth knowing, too."
            ),
            click.option("--fail-on", type=click.Choice(FAIL_ON), help="The finding that makes the exit code 1."),
            click.option("--budget", type=click.FloatRange(min=0), metavar="SECONDS", help="For experiments: 60."),
            click.option("--no-experiments", is_flag=True, help="Judge only by what was recorded."),
            click.option("-q", "--quiet", is_flag=True, help="No report and no progress on stderr."),
            click.option("-v", "--verbose", is_flag=True, help="Show every detail of the report."),
        )
    ):
        command = option(command)
    return command


@main.command(context_settings={"allow_interspersed_args": False})
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module's name, as in `python -m`.")
@_options
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def run(script: str, arguments: tuple[str, ...], as_module: bool, **given: Any) -> NoReturn:
    """Run SCRIPT as it is and report what is wrong with its training. What follows SCRIPT is the script's own."""
    program = launch.module(script, arguments) if as_module else launch.script(script, arguments)
    wishes = _Wishes.gather(Path(program.folder), **_spelled_out(given))
    _leave(*_run(program, f"-m {script}" if as_module else script, wishes))


@main.command()
@_options
@click.argument("factory", metavar="PACKAGE.MODULE:FACTORY")
def examine(factory: str, **given: Any) -> NoReturn:
    """Examine what FACTORY returns: (model, loss_fn, batch) or (model, loss_fn, batch, optimizer)."""
    from netdoctor.factory import FactoryFailed, example

    wishes = _Wishes.gather(Path.cwd(), **_spelled_out(given))
    try:
        made = example(factory)
    except FactoryFailed as failure:
        _leave(launch.Outcome(1, launch.without_own_frames(failure.error)), 1)
    sys.exit(_examined(made, factory, wishes))


@main.command("report")
@click.argument("file", metavar="REPORT.json")
@click.option("--advice", is_flag=True, help="Show findings that are only worth knowing, too.")
@click.option("-v", "--verbose", is_flag=True, help="Show every detail of the report.")
def show(file: str, advice: bool, verbose: bool) -> None:
    """Show a report that `run --json` wrote."""
    from netdoctor.render import jsonfile, terminal

    terminal.print_report(jsonfile.load(file), sys.stdout, verbose=verbose, advice=advice)


@main.command()
def checks() -> None:
    """List all checks."""
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "family", "what it finds", box=None, pad_edge=False)
    for check in sorted(_chosen_checks(Settings()), key=lambda check: (check.family, check.name)):
        table.add_row(check.name, check.family, _documentation(check).partition("\n")[0])
    piped = None if sys.stdout.isatty() else 200  # rows stay whole for grep
    Console(width=piped, markup=False, highlight=False).print(table)


@main.command()
@click.argument("name")
def explain(name: str) -> None:
    """Explain a check: what it is, why it hurts, how it is decided, when it stays silent."""
    from dataclasses import fields

    (check, *_) = _chosen_checks(Settings(select=(name,)))
    click.echo(f"{check.name} ({check.family})\n\n{_documentation(check)}")
    limits = [f"  {field.name.replace('_', '-')} = {getattr(check, field.name)}" for field in fields(check)]
    if limits:
        click.echo("\n".join([f"\nThresholds, set under [tool.netdoctor.thresholds.{check.name}]", *limits]))


def _spelled_out(given: dict[str, Any]) -> dict[str, Any]:
    """The options by the names of the settings; those that were not given are None."""
    given["experiments"] = False if given.pop("no_experiments") else None
    for several in ("select", "ignore"):
        given[several] = given[several] or None
    return given


def _chosen_checks(settings: Settings) -> list[Check]:
    """The checks that these settings choose. Raises MisuseError for a name or threshold that does not exist."""
    from netdoctor import catalogue

    return catalogue.load(settings.select, settings.ignore, settings.thresholds)


def _documentation(check: Check) -> str:
    import inspect

    return inspect.getdoc(type(check)) or ""


def _run(program: Program, target: str, wishes: _Wishes) -> tuple[Outcome, int]:
    """Run the program under observation: how it ended, and the exit code that the findings ask for."""
    from netdoctor.session import EnoughSteps, Session

    engine = Session(wishes.engine(target))
    process = os.getpid()
    engine.start()
    outcome = program.run()
    if os.getpid() != process:  # a fork that ran off the script's end: the report is its parent's to make
        _leave(outcome, 0)
    if isinstance(outcome.error, EnoughSteps):
        outcome, ended = launch.Outcome(), f"stopped after {wishes.steps} steps"
    else:
        ended = outcome.ended
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # what the script printed stands before the report
    return outcome, _concluded(engine, ended, wishes)


def _examined(made: Example, target: str, wishes: _Wishes) -> int:
    """Examine a model that was handed over: the exit code that the findings ask for."""
    from netdoctor.session import examined

    try:
        report, recording = examined(
            made.model, made.loss_fn, made.batch, made.optimizer, steps=wishes.steps, options=wishes.engine(target)
        )
    except NetdoctorError:
        raise
    except Exception as error:  # of the model or the loss function: theirs to show in full
        _say(f"a training step with what {target} returned failed", wishes.stderr)
        _leave(launch.Outcome(1, launch.without_own_frames(error)), 1)
    return _hand_over(report, recording, wishes)


def _concluded(engine: Session, ended: str, wishes: _Wishes) -> int:
    """Stop, judge and report. A fault in here is said in a line: the script's own ending is not lost over it."""
    try:
        engine.stop(ended)
        return _hand_over(engine.report(), engine.recording, wishes)
    except NetdoctorError as error:
        _say(str(error), wishes.stderr)
    except KeyboardInterrupt:
        return _BY_SIGINT
    except Exception as fault:
        _say(f"a fault of netdoctor itself, please report it: {type(fault).__name__}: {fault}", wishes.stderr)
        if wishes.verbose:
            traceback.print_exc(file=wishes.stderr)
    return NetdoctorError.exit_code


def _hand_over(report: Report, recording: Recording, wishes: _Wishes) -> int:
    """Show the report, write its files, and give the exit code that its findings ask for."""
    observed = report.verdict != "not observed"
    if not observed:
        _say(_unobserved(report, recording), wishes.stderr)
    if not wishes.quiet and (observed or report.crashes or wishes.verbose):
        from netdoctor.render import terminal

        terminal.print_report(report, wishes.stderr, verbose=wishes.verbose, advice=wishes.settings.advice)
    written = [_written(file, report, recording, wishes) for file in wishes.files]
    if not observed or not all(written):
        return NetdoctorError.exit_code
    return 1 if wishes.settings.failing(report) else 0


def _written(file: outputs.Output, report: Report, recording: Recording, wishes: _Wishes) -> bool:
    """Write one file and say so; one that cannot be written does not keep the others from it."""
    try:
        file.write(report, recording, wishes.settings.advice)
    except MisuseError as error:
        _say(str(error), wishes.stderr)
        return False
    if not wishes.quiet:
        _say(f"{file.format} report: {file.given}", wishes.stderr)
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


def _leave(outcome: Outcome, code: int) -> NoReturn:
    """End as the program ended: with its own traceback and exit code if it failed, with `code` if it did not."""
    error = outcome.error
    if isinstance(error, SystemExit):
        sys.exit(error.code if outcome.code else code)
    if error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    sys.exit(outcome.code or code)


def _say(text: str, stream: TextIO | None = None) -> None:
    """One line on stderr; never an error of its own, for the stream may be closed by now."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"netdoctor: {text}", file=stream or sys.stderr)
