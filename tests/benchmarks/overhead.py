"""What watching costs: instrumented step / bare step, in one run, per workload.

    python -m tests.benchmarks.overhead [--write] [W1 W2 ...]

Each round takes a fresh model. Short blocks of bare and instrumented steps alternate, so that a slow moment of the machine hits
both; a block's figure is the median CPU time of the training thread, a round's the median of the ratios of neighbouring blocks, a
row's the median over rounds. A busy machine makes all of them worse, as it takes caches away. Of the large workloads (W3, W4) one
step differs from the next by more than the bars allow: there the CPU time inside of netdoctor is read in place, over the bare step
(inplace.py). `--write` puts the table into the README.

- tripwire: a step that is not sampled, as nearly all of a long training are
- watch: the default, mean over the first 1,000 steps with all that the start costs: the first 40 steps are timed as they come, the
  rest is weighed by what its sampled and its other steps cost
- exact: `watch(exact=True)`, a step that is not sampled
- full: every step is sampled
- the others: see instruments.py
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from netdoctor.capture.recorder import Schedule
from tests.benchmarks.inplace import Clock
from tests.benchmarks.instruments import Instrument, Watched, instruments, switched_on
from tests.benchmarks.workloads import WORKLOADS

START, OF = 40, 1000
BLOCK = {"W1": 20, "W2": 5, "W3": 1, "W4": 1}  # steps
ROUNDS = {"W1": 7, "W2": 5, "W3": 1, "W4": 1}
BLOCKS = {"W1": 12, "W2": 8, "W3": 3, "W4": 5}  # of each kind in a round
IN_PLACE = ("W3", "W4")
MARK = re.compile(r"<!-- overhead -->.*?<!-- /overhead -->", re.DOTALL)
BARS = {
    "tripwire": (1.04, 1.05, 1.01, 1.01),
    "watch": (1.06, 1.07, 1.01, 1.01),
    "exact": (1.10, 1.15, 1.02, 1.03),
    "full": (1.40, 1.80, 1.07, 1.10),
}
ROWS = ("tripwire", "watch", "exact", "full")


def timed(step: Callable[[], None], count: int) -> list[float]:
    """Seconds of CPU time of each step."""
    times = []
    for _ in range(count):
        began = time.thread_time()
        step()
        times.append(time.thread_time() - began)
    return times


def ratio(instrument: Instrument, block: int, blocks: int, bares: list[float]) -> float:
    """Instrumented over bare, from alternating blocks; the times of bare steps are added to `bares`."""
    found = []
    for _ in range(blocks):
        timed(instrument.step, 1)
        bare = statistics.median(timed(instrument.step, block))
        instrument.on()
        timed(instrument.step, 1)  # caches that the switching emptied
        found.append(statistics.median(timed(instrument.step, block)) / bare)
        instrument.off()
        bares.append(bare)
    return statistics.median(found)


def placed(instrument: Watched, blocks: int, bares: list[float]) -> float:
    """Instrumented over bare by the CPU time inside of netdoctor alone."""
    clock, ours = Clock(instrument.originals), []
    for _ in range(blocks):
        bares += timed(instrument.step, 1)
        instrument.on()
        timed(instrument.step, 1)
        ours.append(clock.time(instrument.step))
        instrument.off()
    return 1 + statistics.median(ours) / statistics.median(bares[-blocks:])


def start(name: str) -> float:
    """What the first steps take under observation, in bare steps."""
    loaded = WORKLOADS[name]()
    before = statistics.median(timed(loaded[2], 3 * BLOCK[name] + 2))
    with switched_on(Watched, loaded) as watched:
        times = timed(loaded[2], START)
        watched.off()
        after = statistics.median(timed(loaded[2], 3 * BLOCK[name]))
    return sum(times) / statistics.mean((before, after))


def measured(name: str, kinds: dict[str, type[Instrument]]) -> dict[str, float]:
    """The figures of one workload: every row, and "bare ms"."""
    rows: dict[str, list[float]] = {kind: [] for kind in kinds}
    begun, bares = [], []
    for seed in range(ROUNDS[name]):
        for row, kind in kinds.items():
            torch.manual_seed(seed)
            loaded = WORKLOADS[name]()
            timed(loaded[2], 2)
            with switched_on(kind, loaded) as instrument:
                if name in IN_PLACE and isinstance(instrument, Watched):
                    rows[row].append(placed(instrument, 3 * BLOCKS[name], bares))
                else:
                    rows[row].append(ratio(instrument, BLOCK[name], BLOCKS[name], bares))
        begun.append(start(name))
    found = {row: statistics.median(values) for row, values in rows.items()}
    later = sum(sampled_of(OF)) - sum(sampled_of(START))
    plain = OF - START - later
    found["watch"] = (statistics.median(begun) + later * found["full"] + plain * found["tripwire"]) / OF
    found["bare ms"] = statistics.median(bares) * 1e3
    return found


def sampled_of(steps: int) -> list[bool]:
    """Which of the first steps are sampled."""
    schedule = Schedule()
    return [schedule.due(number) for number in range(steps)]


def table(names: list[str]) -> str:
    """The table as Markdown, with the bars."""
    kinds, missing = instruments()
    figures = {}
    for name in names:
        figures[name] = measured(name, kinds)
        print(name, {row: round(value, 3) for row, value in figures[name].items()}, file=sys.stderr, flush=True)
    lines = ["| step / bare step | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in (*ROWS, *(row for row in kinds if row not in ROWS)):
        cells = [_cell(figures[name][row], row, name) for name in names]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines.append("| bare | " + " | ".join(f"{figures[name]['bare ms']:.2f} ms" for name in names) + " |")
    load = f"Load of the machine meanwhile: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores."
    absent = f" Not installed here, and so not timed: {', '.join(missing)}." if missing else ""
    return "\n".join([*lines, "", load + absent])


def _cell(value: float, row: str, name: str) -> str:
    if row not in BARS:
        return f"{value:.3f}"
    bar = BARS[row][list(WORKLOADS).index(name)]
    return f"{value:.3f} (≤ {bar:.2f}{'' if value <= bar else ': missed'})"


def main(arguments: list[str]) -> None:
    """Measure, print, and with `--write` put the table into the README."""
    torch.set_num_threads(1)
    made = table([name for name in WORKLOADS if name in arguments] or list(WORKLOADS))
    print(made)
    if "--write" in arguments:
        readme = Path(__file__).parents[2] / "README.md"
        text = readme.read_text(encoding="utf-8")
        readme.write_text(MARK.sub(lambda _: f"<!-- overhead -->\n{made}\n<!-- /overhead -->", text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
