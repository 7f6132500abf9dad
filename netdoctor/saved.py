"""The commands for files of earlier runs: `report`, `compare` and `schema`. They need no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from netdoctor import outputs, recordingfile
from netdoctor.errors import MisuseError
from netdoctor.recording import Recording
from netdoctor.report import Report
from netdoctor.wishes import Wishes, file_options, judging_options, write_files


@click.command("report")
@file_options(outputs.FORMATS[:-1])
@judging_options
@click.argument("file", metavar="FILE")
def show(file: str, **given: Any) -> NoReturn:
    """Judge a recording of `run --save` again, or show a report of `run --json`.

    The report goes to stdout. A recording is judged with the checks, limits and settings of today; what needs the model
    itself (experiments, trials of fixes) is taken as it was. Exit code 0, or as --fail-on says where it is given.
    """
    failing, asked = given["fail_on"] is not None, given["select"] or given["ignore"] or given["threshold"]
    wishes = Wishes.gather(Path.cwd(), **given)
    report, recording = opened(file, wishes, bool(asked))
    if not wishes.quiet:
        from netdoctor.render import terminal

        terminal.print_report(report, sys.stdout, verbose=wishes.verbose, advice=wishes.settings.advice)
    written = write_files(report, recording, wishes)
    sys.exit(2 if not written else 1 if failing and wishes.settings.failing(report) else 0)


def opened(file: str, wishes: Wishes | None = None, asked: bool = False) -> tuple[Report, Recording | None]:
    """A report with its recording: the file's recording judged now, or its report as it was written (without one).

    Raises MisuseError where the file is neither, or a finished report is asked to be judged otherwise.
    """
    from netdoctor import judging
    from netdoctor.render import jsonfile

    if recordingfile.holds_recording(file):
        saved = recordingfile.load(file)
        options = judging.Options() if wishes is None else wishes.engine(file)
        return judging.judged(saved, options), saved.recording
    if asked:
        raise MisuseError(f"{file} is a finished report: only a recording (`run --save`) can be judged again")
    return jsonfile.load(file), None


@click.command()
@click.option("--json", "path", metavar="PATH", help="Write the comparison as JSON, format 1.")
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
def compare(before: str, after: str, path: str | None) -> None:
    """Compare two runs: what was cured, what is new, what is still there, and how the losses differ.

    BEFORE and AFTER are files of `run --save` or `run --json`; with two recordings the whole curves are compared.
    """
    from netdoctor import comparison
    from netdoctor.render import compared, terminal
    from netdoctor.render.atomic import write_text

    place = outputs.planned({"json": path})
    (old, one), (new, other) = opened(before), opened(after)
    result = comparison.compare(old, new, (one, other))
    terminal.print_text(lambda width, color, plain: compared.render(result, width, color, plain), sys.stdout)
    for output in place:
        write_text(output.path, result.to_json())


@click.command()
def schema() -> None:
    """Print the JSON schema of the report, format 1 (draft 2020-12)."""
    from netdoctor.reportschema import SCHEMA

    click.echo(json.dumps(SCHEMA, indent=1))


COMMANDS = (show, compare, schema)
