"""The figures of the README's section on reliability: `python -m tests.reliability [FIGURE …]`, all of them when none is named.

healthy    scripts of fixtures/healthy that print the same and train the same bits, run by `python` and by `netdoctor run`
hazards    trainings that hooks often break (hazards.py): same bits, seen or said
faults     entry points of our own made to raise, one at a time: same bits, a report with the fault in it
random     random architectures with random faults: same bits, valid JSON, torch as it was, no crash
kills      real processes killed (-9) at random moments: the file on disk gives a report, and how old it is at most
fuzz       reports, recordings and journals with random bytes changed: read or refused, nothing else
memory     what an observation holds after 100,000 steps
"""

from __future__ import annotations

import contextlib
import copy
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import memory
from tests.scripts import FIXTURES, run_observed, run_plain

INJECTED = ("tests/capture/test_containment.py", "tests/capture/test_injected.py")
RANDOM, KILLS, FUZZED = 200, 12, 1000
_BYTES = b'{}[]",:0123456789truefalsn-e\n\\u\xff\x00'


class Counting:
    """A pytest plugin that counts."""

    def __init__(self) -> None:
        self.passed, self.failed = 0, list[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed += 1


def tested(*arguments: str) -> str:
    """n/n of the tests that these arguments of pytest choose."""
    counting = Counting()
    with open("/dev/null", "w") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main(["-q", "-p", "no:cacheprovider", "-m", "", *arguments], plugins=[counting])
    failed = sorted(set(counting.failed))
    return f"{counting.passed}/{counting.passed + len(failed)}" + "".join(f"\n    {name}" for name in failed)


def healthy() -> str:
    """Whole programs, by their own numbers: stdout and a hash over every parameter after every step."""
    scripts, other = sorted((FIXTURES / "healthy").glob("*.py")), []
    for script in scripts:
        plain, watched = run_plain(script), run_observed(script, "--no-experiments")
        if (plain.stdout, plain.digest) != (watched.stdout, watched.digest):
            other.append(script.name)
    return f"{len(scripts) - len(other)}/{len(scripts)}" + "".join(f"\n    {name}" for name in other)


def randoms(count: int = RANDOM) -> str:
    """Random trainings, without experiments."""
    from tests.reliability.test_random_trainings import examined

    broken = []
    for number in range(count):
        try:
            examined(number, experiments=False)
        except Exception as error:
            broken.append(f"\n    {number}: {type(error).__name__}: {str(error)[:200]}")
    return f"{count - len(broken)}/{count}" + "".join(broken)


def kills(count: int = KILLS) -> str:
    """Kill a training at random moments, and read what is left."""
    from netdoctor.judging import diagnose
    from tests.test_journal import started, steps_until

    draw, survived, oldest = random.Random(0), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / str(number)
            with started(path) as process:
                seen = steps_until(process, draw.uniform(0.3, 6.0))
                process.send_signal(signal.SIGKILL)
                process.communicate()
            report = diagnose(path)
            survived += report.steps > 0 and report.ended == "cut off"
            oldest = max(oldest, seen[-1][0] - next(when for when, step in seen if step >= report.steps))
    return f"{survived}/{count}, the file at most {oldest:.1f} s old"


def fuzz(count: int = FUZZED) -> str:
    """Random bytes changed in what was written: each file is read as something, or refused with one line."""
    from netdoctor.errors import MisuseError
    from netdoctor.judging import diagnose
    from netdoctor.render import jsonfile
    from netdoctor.report import Report
    from tests.test_journal import recording, written

    draw, crashes, refused = random.Random(1), [], 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, content, work in _originals(Path(folder), recording, written, diagnose, jsonfile, Report):
            for _ in range(count):
                broken = _mutated(content, draw)
                path = Path(folder) / "broken"
                path.write_bytes(broken)
                try:
                    work(path)
                except MisuseError:
                    refused += 1
                except Exception as error:
                    crashes.append(f"\n    {kind}: {type(error).__name__}: {str(error)[:120]}")
    return f"{3 * count} inputs, {refused} refused, {len(crashes)} crashes" + "".join(sorted(set(crashes)))


def _originals(folder: Path, recording: Any, written: Any, diagnose: Any, jsonfile: Any, report: Any) -> Any:
    from netdoctor import recordingfile

    one = recording(20)
    made: Any = diagnose(copy.deepcopy(one))
    written(folder / "journal", recording(3), one).close()
    yield "report", made.to_json().encode(), jsonfile.load
    yield "recording", "".join(recordingfile.lines(one, made)).encode(), diagnose
    yield "journal", (folder / "journal").read_bytes(), diagnose


def _mutated(content: bytes, draw: random.Random) -> bytes:
    broken = bytearray(content)
    for _ in range(draw.randint(1, 12)):
        at = draw.randrange(len(broken))
        how = draw.random()
        if how < 0.6:
            broken[at] = draw.choice(_BYTES)
        elif how < 0.8:
            del broken[at : at + draw.randint(1, 200)]
        else:
            broken[at:at] = broken[max(0, at - draw.randint(1, 200)) : at]
        broken = broken or bytearray(b"{")
    return bytes(broken)


def held() -> str:
    """Memory after many steps."""
    steps = memory.STEPS
    (early, late, _), (seen_early, seen_late, length) = memory.child(steps, False), memory.child(steps, True)
    growth = (seen_late - seen_early) - (late - early)
    more = f"{(seen_late - late) / 2**20:.1f} MiB more than the training alone"
    return f"{more}, {growth / 2**10:.0f} KiB of it since step {steps // 10}; recording {length / 2**20:.2f} MiB"


FIGURES: dict[str, tuple[str, Callable[[], str]]] = {
    "healthy": ("healthy programs bit-identical", healthy),
    "hazards": ("hazards of hooking handled", lambda: tested("tests/capture/test_hazards.py")),
    "faults": (
        "injected internal faults survived",
        lambda: tested(*INJECTED, "-k", "broken"),
    ),
    "random": ("random architectures with random faults survived", randoms),
    "kills": ("kill points survived", kills),
    "fuzz": ("fuzz inputs", fuzz),
    "memory": ("held after 100,000 steps", held),
}


def main(names: list[str]) -> None:
    """Print the figures that are asked for."""
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        sys.exit(f"no such figure: {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    for name in names or FIGURES:
        says, work = FIGURES[name]
        started = time.perf_counter()
        sys.stdout.write(f"{says}: {work()} ({time.perf_counter() - started:.0f} s)\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
