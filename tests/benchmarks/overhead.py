"""What watching costs: instrumented step / bare step, in one run, per workload.

    python -m tests.benchmarks.overhead [--write] [W1 W2 ...]

Each round takes a fresh model; bare and instrumented blocks alternate, so that a slow moment of the machine hits both. A block's
figure is the mean of the CPU time of the training thread over its steps, without the slowest tenth (other processes on a shared
machine); a row is the median of the ratios over rounds. `--write` puts the table into the README.

- tripwire: a step that is not sampled, as nearly all of a long training are
- watch: the default, mean over the first 1,000 steps with all that the start costs: the first 40 steps are timed as they come, the
  rest is weighed by what its sampled and its other steps cost
- full: every step is sampled
- hooks: five statistics with `.item()` per layer and gradient, as written by hand
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.observer import Observer
from netdoctor.capture.origin import find_origin
from netdoctor.capture.recorder import Schedule
from netdoctor.capture.taps import Taps
from tests.benchmarks.workloads import WORKLOADS, Loaded

ROUNDS = 7
STEPS = {"W1": 150, "W2": 40, "W3": 3, "W4": 4}  # of a block
START, OF, SETTLED = 40, 1000, 5000
MARK = re.compile(r"<!-- overhead -->.*?<!-- /overhead -->", re.DOTALL)
BARS = {
    "tripwire": (1.04, 1.05, 1.01, 1.01),
    "watch": (1.06, 1.07, 1.01, 1.01),
    "full": (1.40, 1.80, 1.07, 1.10),
}


def timed(step: Callable[[], None], count: int) -> list[float]:
    """Seconds of CPU time of each step."""
    times = []
    for _ in range(count):
        began = time.thread_time()
        step()
        times.append(time.thread_time() - began)
    return times


def typical(times: list[float]) -> float:
    """Their mean without the slowest tenth."""
    return statistics.mean(sorted(times)[: max(1, len(times) - len(times) // 10)])


@contextmanager
def observing(loaded: Loaded) -> Iterator[Observer]:
    """Watch a workload as `netdoctor.watch` does."""
    model, optimizer, _ = loaded
    observer = Observer()
    observer.find_origin = find_origin
    taps = Taps(observer)
    taps.install()
    observer.names.add_root(model)
    taps.training.made(optimizer)
    try:
        yield observer
    finally:
        taps.remove()
        assert not observer.containment.faults, observer.containment.faults


@contextmanager
def hooked(loaded: Loaded) -> Iterator[None]:
    """Hooks as one writes them: five statistics with `.item()` of each output and gradient."""

    def look(values: Any) -> None:
        if isinstance(values, Tensor):
            values = values.detach()
            for statistic in (
                values.mean(),
                values.std(),
                values.abs().max(),
                values.norm(),
                (values == 0).float().mean(),
            ):
                statistic.item()

    leaves = [module for module in loaded[0].modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(lambda m, i, o: look(o)) for leaf in leaves]
    handles += [p.register_hook(look) for p in loaded[0].parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def settle(observer: Observer, sampled: bool) -> None:
    """Go on as in the middle of a long training, with every step sampled or none."""
    observer.step = max(observer.step, SETTLED)
    observer.schedule.due = lambda _: sampled  # type: ignore[method-assign]


def one_round(name: str, seed: int) -> dict[str, float]:
    """The ratios of one round."""
    torch.manual_seed(seed)
    loaded = WORKLOADS[name]()
    step, count = loaded[2], STEPS[name]
    timed(step, 3)
    found: dict[str, float] = {}
    bares = [typical(timed(step, count))]

    def ratio(times: list[float], far: float | None = None) -> float:
        bares.append(typical(timed(step, count)))
        return (far if far is not None else typical(times)) / statistics.mean(bares[-2:])

    with hooked(loaded):
        times = timed(step, max(2, count // 4))
    found["hooks"] = ratio(times)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        times = timed(step, max(2, count // 2))
    found["detect_anomaly"] = ratio(times)
    with observing(loaded) as observer:
        begun = sum(timed(step, START)) / (statistics.mean(bares[-2:]))
        settle(observer, sampled=False)
        timed(step, 2)
        plain = timed(step, count)
    found["tripwire"] = ratio(plain)
    with observing(loaded) as observer:
        timed(step, 6)
        settle(observer, sampled=True)
        timed(step, 2)
        full = timed(step, max(3, count // 3))
    found["full"] = ratio(full)
    later = sum(sampled_of(OF)) - sum(sampled_of(START))
    found["watch"] = (begun + later * found["full"] + (OF - START - later) * found["tripwire"]) / OF
    found["bare ms"] = statistics.median(bares) * 1e3
    return found


def sampled_of(steps: int) -> list[bool]:
    """Which of the first steps are sampled."""
    schedule = Schedule()
    return [schedule.due(number) for number in range(steps)]


def table(names: list[str]) -> str:
    """The table as Markdown, with the bars."""
    lines = [
        "| step / bare step | " + " | ".join(f"{name}" for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    rounds = {name: [one_round(name, seed) for seed in range(ROUNDS)] for name in names}
    for row in ("tripwire", "watch", "full", "detect_anomaly", "hooks"):
        cells = []
        for name in names:
            value = statistics.median(found[row] for found in rounds[name])
            bar = BARS[row][list(WORKLOADS).index(name)] if row in BARS else None
            cells.append(
                f"{value:.3f}" + ("" if bar is None else f" (≤ {bar:.2f}{'' if value <= bar else ': missed'})")
            )
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    bare = [f"{statistics.median(found['bare ms'] for found in rounds[name]):.2f} ms" for name in names]
    lines.append("| bare | " + " | ".join(bare) + " |")
    return "\n".join(lines)


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
