"""The report files that the command line was asked for: checked before the run, written whole after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netdoctor import excerpts
from netdoctor.errors import MisuseError
from netdoctor.recording import Recording
from netdoctor.report import Report

FORMATS = ("json", "html", "markdown", "junit", "sarif", "save")


@dataclass(frozen=True, slots=True)
class Output:
    """One report file to write: its format, its absolute path, and the path as the user gave it."""

    format: str
    path: Path
    given: str

    @property
    def label(self) -> str:
        """What the file is."""
        return "saved recording" if self.format == "save" else f"{self.format} report"

    def text(self, report: Report, recording: Recording | None, advice: bool) -> str:
        """The report in this format. Renderers are imported here: those that draw take long to load."""
        if self.format == "html":
            from netdoctor.render import html

            return html.render(report, recording, advice=advice)
        if self.format == "markdown":
            from netdoctor.render import markdown

            return markdown.render(report, advice=advice)
        if self.format == "junit":
            from netdoctor.render import junit

            return junit.render(report)
        if self.format == "sarif":
            from netdoctor.render import sarif

            return sarif.render(report)
        if self.format == "save":
            from netdoctor import recordingfile

            return "".join(recordingfile.lines(recording or Recording(), report))
        from netdoctor.render import jsonfile

        return jsonfile.render(report)

    def write(self, report: Report, recording: Recording | None, advice: bool) -> None:
        """Write the file in one move. Raises MisuseError where the place has become unusable during the run."""
        from netdoctor.render.atomic import write_text

        if recording is not None and not recording.excerpts and self.format in ("html", "save"):
            recording.excerpts = excerpts.gather(recording, report)
        text = self.text(report, recording, advice)
        _check_place(self.path, self.given)
        write_text(self.path, text)


def planned(paths: Mapping[str, str | None]) -> tuple[Output, ...]:
    """The outputs for the paths given per format, proven to be writable now.

    The paths are made absolute, for a script may change its working directory. Raises MisuseError for a path that
    cannot be written, is a link or a device, is Python source, or is given twice.
    """
    outputs: list[Output] = []
    for form, given in paths.items():
        if given is None:
            continue
        path = Path(os.path.abspath(given))
        if path in {output.path for output in outputs}:
            raise MisuseError(f"{given} is given for two reports; each needs a file of its own")
        _check_place(path, given)
        _check_folder(path.parent, given)
        outputs.append(Output(form, path, given))
    return tuple(outputs)


def _check_place(path: Path, given: str) -> None:
    """Refuse what a report must not replace: links (they may point anywhere), folders, devices, source code."""
    if not given or given.endswith(os.sep) or path.is_dir():
        raise MisuseError(f"cannot write the report to {given or 'an empty path'}: it is a folder, not a file")
    if path.is_symlink():
        raise MisuseError(f"will not write the report through the link {given}: give the path that it points to")
    if path.exists() and not path.is_file():
        raise MisuseError(f"cannot write the report to {given}: it is not an ordinary file")
    if path.suffix in {".py", ".pyi", ".ipynb"}:
        raise MisuseError(f"will not write the report to {given}: that name is for Python source")


def _check_folder(folder: Path, given: str) -> None:
    """Prove that a file can be made there by making one; permissions alone do not tell (read-only disks, root)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileNotFoundError:
        raise MisuseError(f"cannot write the report to {given}: there is no folder {folder}") from None
    except OSError as error:
        raise MisuseError(f"cannot write the report to {given}: {error.strerror or error}") from None
    if Path(given).exists() and not os.access(given, os.W_OK):
        raise MisuseError(f"cannot write the report to {given}: the file is read-only")
