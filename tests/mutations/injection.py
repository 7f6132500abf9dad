"""What a fault is, and how it gets into a program."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.scripts import FIXTURES, run_observed

Edit = tuple[str, str]


@dataclass(frozen=True)
class Fault:
    """A fault, the checks that name its root cause, and the edits that put it into programs of fixtures/healthy.

    Each edit replaces a text, wherever it stands, by another one; it must stand somewhere.
    """

    name: str
    expected: tuple[str, ...]
    programs: dict[str, tuple[Edit, ...]]


@dataclass(frozen=True)
class Outcome:
    """What a mutant's report says. `rank`: where the root cause stands, from 0; None when it is not there."""

    fault: Fault
    program: str
    code: int
    seconds: float
    findings: tuple[str, ...]
    symptoms: tuple[str, ...]
    crashed: str

    @property
    def rank(self) -> int | None:
        return next((i for i, name in enumerate(self.findings) if name in self.fault.expected), None)


def mutated(fault: Fault, program: str) -> str:
    """The program's source with the fault in it; ValueError where a text to replace is not there."""
    source = (FIXTURES / "healthy" / f"{program}.py").read_text()
    for before, after in fault.programs[program]:
        if before not in source:
            raise ValueError(f"{fault.name}: {program} has no {before!r}")
        source = source.replace(before, after)
    return source.replace("# expect: healthy\n", "", 1)


def run(fault: Fault, program: str) -> Outcome:
    """Runs the mutant through the command line, experiments included (some 5 to 20 s)."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / f"{program}.py"
        script.write_text(mutated(fault, program))
        result = run_observed(script)
    report: dict[str, Any] = result.report or {"findings": [], "crashes": [result.stderr[-300:] or "no report"]}
    serious = [f for f in report["findings"] if f["severity"] != "advice"]
    return Outcome(
        fault,
        program,
        result.code,
        time.perf_counter() - began,
        tuple(f["check"] for f in serious),
        tuple(s["check"] for f in serious for s in f["symptoms"]),
        "; ".join(str(crash) for crash in report["crashes"]),
    )
