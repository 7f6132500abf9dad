"""Starting programs as a user would, each in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_session.py")


def python(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS…` in a folder, with this checkout importable."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def fake(*arguments: str | Path, folder: Path, session: str = "healthy") -> subprocess.CompletedProcess[str]:
    """`netdoctor ARGUMENTS…` over the fake session."""
    return python(FAKE, *arguments, folder=folder, FAKE_SESSION=session)


def netdoctor(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`netdoctor ARGUMENTS…` as it is."""
    return python("-m", "netdoctor", *arguments, folder=folder)
