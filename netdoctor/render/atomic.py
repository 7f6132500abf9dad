"""Writing a file so that a reader sees either the old one or the whole new one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from netdoctor.errors import MisuseError


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text in one move; a pipe or device (/dev/stdout) is written to as it stands.

    Lone surrogates, as in file names that are not UTF-8, become "\\udc80".
    Raises MisuseError where the path cannot be written.
    """
    target = Path(os.path.realpath(path))
    data = text.encode("utf-8", "backslashreplace")
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise MisuseError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def _replace(target: Path, data: bytes) -> None:
    beside = target.with_name(f".{target.name[:100]}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
