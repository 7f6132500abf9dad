"""The report as a JSON file (format 1), written whole and read back with suspicion."""

from __future__ import annotations

import json
import os

from netdoctor.errors import MisuseError
from netdoctor.render.atomic import write_text
from netdoctor.report import Report
from netdoctor.reportfile import from_dict

LARGEST = 64 * 2**20  # bytes; a report with curves for hundreds of findings stays below 10 MiB


def render(report: Report) -> str:
    """Strict JSON that ends with a line break."""
    return report.to_json() + "\n"


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the report so that a reader never sees half of it. Raises MisuseError where the path cannot be written."""
    write_text(path, render(report))


def load(path: str | os.PathLike[str]) -> Report:
    """Read a report that `write` wrote. Nothing of the file is run; raises MisuseError where it is not a report."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise MisuseError(f"cannot read {name}: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise MisuseError(f"{name} is larger than {LARGEST // 2**20} MiB, so it is no netdoctor report")
    try:
        return from_dict(json.loads(data.decode("utf-8")))
    except MisuseError as error:
        raise MisuseError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"{name} is not JSON: {str(error)[:200]}") from error
