"""How well the fixtures are diagnosed: `python -m tests.scoreboard [--write]` prints the table of the README (and puts it there).

Every script under fixtures/ runs through the real command line; none is left out. A sick script counts for its check's family.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdoctor import catalogue
from tests.scripts import FIXTURES, ROOT, advised, expected, run_observed

BEGIN, END = "<!-- scoreboard -->", "<!-- /scoreboard -->"
HEAD = "| | scripts | root cause first | in the first 3 | wrong first error | place right | fix cured in a trial | seconds |"
HEALTHY_HEAD = "| | scripts | false errors | false warnings | seconds |"


@dataclass(frozen=True)
class Row:
    """One script's run."""

    script: Path
    cause: str | None
    place: str | None
    findings: list[dict[str, Any]]
    seconds: float

    @property
    def serious(self) -> list[dict[str, Any]]:
        return [f for f in self.findings if f["severity"] != "advice" or f["check"] == self.cause]

    def rank(self) -> int | None:
        """Where the root cause stands among the findings, from 0; None when it is missing."""
        names = [f["check"] for f in self.serious]
        return names.index(self.cause) if self.cause in names else None

    def located(self) -> bool:
        found = self.rank()
        if found is None:
            return False
        module = self.serious[found]["location"]["module"] or ""
        return self.place is None or module == self.place or module.startswith(f"{self.place}.")

    def cured(self) -> bool:
        return any((fix["trial"] or {}).get("verdict") == "cured" for f in self.serious for fix in f["fixes"])

    def wrong_error(self) -> bool:
        return bool(self.serious) and self.serious[0]["severity"] == "error" and self.serious[0]["check"] != self.cause

    def count(self, severity: str) -> int:
        return sum(f["severity"] == severity for f in self.serious)


def measure(script: Path) -> Row:
    """Run one script."""
    began = time.perf_counter()
    result = run_observed(script)
    promised = expected(script)
    cause, place = promised[0] if promised else (next(iter(advised(script)), None), None)
    findings = result.report["findings"] if result.report is not None else []
    return Row(script, cause, place, findings, time.perf_counter() - began)


def table(rows: list[Row]) -> str:
    """The two tables: sick scripts by family, healthy and cured ones."""
    families = {check.name: check.family for check in catalogue.all_checks()}
    sick = [row for row in rows if row.cause is not None]
    lines = [HEAD, "|---|" + "---:|" * 7]
    groups = {
        family: [r for r in sick if families.get(r.cause or "") == family] for family in sorted(set(families.values()))
    }
    for family, members in [*((f, m) for f, m in groups.items() if m), ("**all**", sick)]:
        lines.append(_sick_line(family, members))
    lines += ["", HEALTHY_HEAD, "|---|" + "---:|" * 4]
    for name, members in (("healthy", [r for r in rows if r.script.parent.name == "healthy"]),
                          ("cured", [r for r in rows if r.cause is None and r.script.parent.name != "healthy"])):  # fmt: skip
        seconds = statistics.median([r.seconds for r in members] or [0.0])
        wrong = sum(r.count("error") for r in members), sum(r.count("warning") for r in members)
        lines.append(f"| {name} | {len(members)} | {wrong[0]} | {wrong[1]} | {seconds:.0f} |")
    return "\n".join(lines)


def _sick_line(name: str, rows: list[Row]) -> str:
    ranks = [row.rank() for row in rows]
    cells = (
        len(rows),
        sum(rank == 0 for rank in ranks),
        sum(rank is not None and rank < 3 for rank in ranks),
        sum(row.wrong_error() for row in rows),
        sum(row.located() for row in rows),
        sum(row.cured() for row in rows),
        f"{statistics.median(row.seconds for row in rows):.0f}",
    )
    return f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |"


def main(arguments: list[str]) -> None:
    """Measure everything, print the tables, and write them into the README when asked."""
    scripts = sorted(FIXTURES.glob("*/*.py"))
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(measure, scripts))
    found = table(rows)
    print(found)
    for row in rows:
        if row.cause is not None and row.rank() != 0:
            print(f"not first: {row.script.relative_to(ROOT)}: {[f['check'] for f in row.serious]}", file=sys.stderr)
        elif row.cause is None and row.serious:
            print(f"false: {row.script.relative_to(ROOT)}: {[f['check'] for f in row.serious]}", file=sys.stderr)
    if "--write" in arguments:
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{found}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main(sys.argv[1:])
