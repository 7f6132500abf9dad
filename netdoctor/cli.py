"""The command line. Reports go to stderr and to the files asked for; stdout is the script's. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from netdoctor import __version__, launch, saved
from netdoctor.config import Settings
from netdoctor.errors import NetdoctorError
from netdoctor.wishes import Wishes, chosen_checks, hand_over, running_options, say

if TYPE_CHECKING:
    from netdoctor.check import Check
    from netdoctor.factory import Example
    from netdoctor.launch import Outcome, Program
    from netdoctor.session import Session

_BY_SIGINT = 130


class _Refusal(click.ClickException):
    """One clear line on stderr and exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        say(self.message)


class _Doors(click.Group):
    """All commands: what netdoctor refuses on purpose becomes one line, Ctrl-C the shell's usual exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NetdoctorError as error:
            raise _Refusal(str(error)) from None
        except KeyboardInterrupt:
            sys.exit(_BY_SIGINT)


@click.group(cls=_Doors, commands=saved.COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="netdoctor")
def main() -> None:
    """Find out why a PyTorch training does not work: root causes, proven by experiments on a copy.

    Exit code: 0 nothing at the level of --fail-on, 1 findings, 2 netdoctor could not do what was asked; a script that
    fails keeps its own.
    """


@main.command(context_settings={"allow_interspersed_args": False})
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module's name, as in `python -m`.")
@running_options
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def run(script: str, arguments: tuple[str, ...], as_module: bool, **given: Any) -> NoReturn:
    """Run SCRIPT as it is and report what is wrong with its training. What follows SCRIPT is the script's own."""
    program = launch.module(script, arguments) if as_module else launch.script(script, arguments)
    wishes = Wishes.gather(Path(program.folder), **given)
    _leave(*_run(program, f"-m {script}" if as_module else script, wishes))


@main.command()
@running_options
@click.argument("factory", metavar="PACKAGE.MODULE:FACTORY")
def examine(factory: str, **given: Any) -> NoReturn:
    """Examine what FACTORY returns: (model, loss_fn, batch) or (model, loss_fn, batch, optimizer)."""
    from netdoctor.factory import FactoryFailed, example

    wishes = Wishes.gather(Path.cwd(), **given)
    try:
        made = example(factory)
    except FactoryFailed as failure:
        _leave(launch.Outcome(1, launch.without_own_frames(failure.error)), 1)
    sys.exit(_examined(made, factory, wishes))


@main.command()
def checks() -> None:
    """List all checks."""
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "family", "what it finds", box=None, pad_edge=False)
    for check in sorted(chosen_checks(Settings()), key=lambda check: (check.family, check.name)):
        table.add_row(check.name, check.family, _documentation(check).partition("\n")[0])
    piped = None if sys.stdout.isatty() else 200  # rows stay whole for grep
    Console(width=piped, markup=False, highlight=False).print(table)


@main.command()
@click.argument("name")
def explain(name: str) -> None:
    """Explain a check: what it is, why it hurts, how it is decided, when it stays silent."""
    from dataclasses import fields

    (check, *_) = chosen_checks(Settings(select=(name,)))
    click.echo(f"{check.name} ({check.family})\n\n{_documentation(check)}")
    limits = [f"  {field.name.replace('_', '-')} = {getattr(check, field.name)}" for field in fields(check)]
    if limits:
        click.echo("\n".join([f"\nThresholds, set under [tool.netdoctor.thresholds.{check.name}]", *limits]))


def _documentation(check: Check) -> str:
    import inspect

    return inspect.getdoc(type(check)) or ""


def _run(program: Program, target: str, wishes: Wishes) -> tuple[Outcome, int]:
    """Run the program under observation: how it ended, and the exit code that the findings ask for."""
    from netdoctor.session import EnoughSteps, Session

    engine = Session(wishes.engine(target))
    process = os.getpid()
    for file in wishes.files:
        if file.format == "save":
            engine.keep(file.path)  # from now on, not only at the end: the process may be killed
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


def _examined(made: Example, target: str, wishes: Wishes) -> int:
    """Examine a model that was handed over: the exit code that the findings ask for."""
    from netdoctor.session import examined

    try:
        report, recording = examined(
            made.model, made.loss_fn, made.batch, made.optimizer, steps=wishes.steps, options=wishes.engine(target)
        )
    except NetdoctorError:
        raise
    except Exception as error:  # of the model or the loss function: theirs to show in full
        say(f"a training step with what {target} returned failed", wishes.stderr)
        _leave(launch.Outcome(1, launch.without_own_frames(error)), 1)
    return hand_over(report, recording, wishes)


def _concluded(engine: Session, ended: str, wishes: Wishes) -> int:
    """Stop, judge and report. A fault in here is said in a line: the script's own ending is not lost over it."""
    try:
        engine.stop(ended)
        if engine.follows:  # one of several processes: the first one reports for all
            return 0
        return hand_over(engine.report(), engine.recording, wishes)
    except NetdoctorError as error:
        say(str(error), wishes.stderr)
    except KeyboardInterrupt:
        return _BY_SIGINT
    except Exception as fault:
        say(f"a fault of netdoctor itself, please report it: {type(fault).__name__}: {fault}", wishes.stderr)
        if wishes.verbose:
            traceback.print_exc(file=wishes.stderr)
    return NetdoctorError.exit_code


def _leave(outcome: Outcome, code: int) -> NoReturn:
    """End as the program ended: with its own traceback and exit code if it failed, with `code` if it did not."""
    error = outcome.error
    if isinstance(error, SystemExit):
        sys.exit(error.code if outcome.code else code)
    if error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    sys.exit(outcome.code or code)
