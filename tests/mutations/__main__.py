"""Detection of each fault: `python -m tests.mutations [--each N] [FAULT …]`.

Puts every fault (or those whose name holds one of the texts given) into its programs, N at most, and prints how often
its root cause was the first finding, and among the first three. About 10 s for each program.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tests.mutations.catalogue import FAULTS
from tests.mutations.injection import Fault, Outcome, run

HEAD = "| fault | programs | first | in the first 3 |\n|---|---:|---:|---:|"


def line(name: str, outcomes: list[Outcome]) -> str:
    """A row of the table."""
    ranks = [outcome.rank for outcome in outcomes]
    first, third = sum(rank == 0 for rank in ranks), sum(rank is not None and rank < 3 for rank in ranks)
    return f"| {name} | {len(ranks)} | {first} | {third} |"


def said(outcome: Outcome) -> str:
    """One mutant's result in a line."""
    rank = "missed" if outcome.rank is None else "first" if outcome.rank == 0 else f"place {outcome.rank + 1}"
    others = f" (symptoms: {', '.join(outcome.symptoms)})" if outcome.symptoms and outcome.rank is None else ""
    found = ", ".join(outcome.findings) or "nothing"
    return f"{rank:>8}  {outcome.fault.name} in {outcome.program}: {found}{others} {outcome.crashed}".rstrip()


def measured(faults: list[Fault], each: int) -> Iterator[list[Outcome]]:
    """The outcomes of each fault, told as they come."""
    for fault in faults:
        outcomes = []
        for program in list(fault.programs)[:each]:
            outcomes.append(run(fault, program))
            print(f"{outcomes[-1].seconds:4.0f} s {said(outcomes[-1])}", flush=True)
        yield outcomes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("--each", type=int, default=100, help="programs of each fault, at most")
    parser.add_argument("faults", nargs="*", help="parts of the names of faults; all when there is none")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if not options.faults or any(text in f.name for text in options.faults)]
    found = list(measured(chosen, options.each))
    print(HEAD)
    for outcomes in found:
        print(line(outcomes[0].fault.name, outcomes))
    print(line("**all**", [outcome for outcomes in found for outcome in outcomes]))


if __name__ == "__main__":
    main()
