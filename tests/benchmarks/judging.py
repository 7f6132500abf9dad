"""How long the checks take to judge a recording: `python -m tests.benchmarks.judging [RECORDING ...]`.

Without recordings given, every program of fixtures/healthy is recorded with the default options and a short budget. Each check
judges each recording several times, the best time counts; the loss's trend, which is judged once for all checks, is known by then.
Then a stack of 100 layers is recorded for 1,000 steps, and all checks together and the ranking are timed.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from netdoctor import catalogue, recordingfile, trend
from netdoctor.diagnosis import diagnose
from netdoctor.recording import Recording
from tests.benchmarks.running import SCRIPT

HEALTHY = Path(__file__).parents[2] / "fixtures" / "healthy"
BAR = 1.0  # ms: what issue D asks of each check
TIMES = 9
STACK = ("100", "32", "1000", "16")  # layers, width, steps, batch


def record(script: Path, target: Path, arguments: tuple[str, ...] = (), *options: str) -> Path:
    """Run a script under netdoctor; its findings are no failure."""
    command = [sys.executable, "-m", "netdoctor", "run", "--quiet", *options, "--save", str(target), str(script)]
    subprocess.run([*command, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    return target


def best(work: Callable[[], object], times: int = TIMES) -> float:
    """The shortest of several runs, in ms; no more of them where the first is far below the bar."""
    shortest = math.inf
    for _ in range(times):
        began = time.perf_counter()
        work()
        shortest = min(shortest, 1000 * (time.perf_counter() - began))
        if shortest < BAR / 2:
            break
    return shortest


def judge(recordings: dict[str, Recording]) -> list[tuple[float, str, str]]:
    """(ms, check, recording), the slowest first."""
    found = []
    for name, recording in recordings.items():
        trend.judge(recording)
        for check in catalogue.all_checks():
            found.append(
                (best(lambda check=check, recording=recording: list(check.judge(recording))), check.name, name)
            )
    return sorted(found, reverse=True)


def main(given: list[str]) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(path) for path in given]
        for script in [] if paths else sorted(HEALTHY.glob("*.py")):
            paths.append(record(script, Path(place) / f"{script.stem}.ndr", (), "--budget", "5"))
        found = judge({path.stem: recordingfile.load(path).recording for path in paths})
        over = [row for row in found if row[0] > BAR]
        print(
            f"{len(paths)} recordings, {len({name for _, name, _ in found})} checks: {len(over)} of {len(found)} over {BAR} ms"
        )
        print("\n".join(f"  {taken:.2f} ms  {check}  {name}" for taken, check, name in found[:10]))
        script = Path(place) / "stack.py"
        script.write_text(SCRIPT)
        deep = recordingfile.load(record(script, Path(place) / "stack.ndr", STACK, "--no-experiments")).recording
        taken = best(lambda: diagnose(deep, catalogue.all_checks()))
        print(f"{len(deep.layers)} layers x {deep.steps} steps: diagnosed in {taken:.0f} ms")


if __name__ == "__main__":
    main(sys.argv[1:])
