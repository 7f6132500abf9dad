"""What watching costs: instrumented step / bare step, in one run, per workload. `python -m tests.benchmarks.overhead [W1 W2 ...]`.

Each round takes fresh identical models; bare and instrumented blocks alternate. A block's figure is the mean over its steps of the
CPU time of the training thread, without the slowest tenth (other processes on a shared machine); a row is the median over rounds.
"watch" weighs the plain steps and the sampled ones as a training of 1,000 steps mixes them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from netdoctor.capture.observer import Observer
from netdoctor.capture.origin import find_origin
from netdoctor.capture.recorder import Schedule
from netdoctor.capture.taps import Taps
from tests.benchmarks.workloads import WORKLOADS, Loaded

ROUNDS = 5
STEPS = {"W1": 300, "W2": 80, "W3": 4, "W4": 6}
SAMPLED = {"W1": 40, "W2": 15, "W3": 4, "W4": 4}
OF = 1000


def timed(step: Callable[[], None], count: int) -> float:
    """Seconds of CPU time per step, without the slowest tenth."""
    times = []
    for _ in range(count):
        began = time.thread_time()
        step()
        times.append(time.thread_time() - began)
    kept = sorted(times)[: max(1, count - count // 10)]
    return statistics.mean(kept)


def fresh(name: str, seed: int) -> Loaded:
    """A newly built workload, warmed up by two steps."""
    torch.manual_seed(seed)
    loaded = WORKLOADS[name]()
    for _ in range(2):
        loaded[2]()
    return loaded


def observed(name: str, seed: int, every: int | None, count: int) -> float:
    """Seconds per step under observation: `every=1` measures each step in full, None none of them after the first."""
    model, optimizer, step = fresh(name, seed)
    observer = Observer(every=every)
    observer.find_origin = find_origin
    observer.program.keep_start = False  # what experiments keep of the first steps is no part of watching
    taps = Taps(observer)
    taps.install()
    observer.names.add_root(model)
    taps.training.made(optimizer)
    try:
        if every is None:
            step()
            observer.schedule.due = lambda _: False  # type: ignore[method-assign]
        for _ in range(2):
            step()
        return timed(step, count)
    finally:
        taps.remove()
        assert not observer.containment.faults, observer.containment.faults


def anomaly(name: str, seed: int, count: int) -> float:
    """Seconds per step under `torch.autograd.set_detect_anomaly`."""
    _, _, step = fresh(name, seed)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        return timed(step, count)


def main(names: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    schedule = Schedule()
    share = sum(schedule.due(step) for step in range(OF)) / OF
    print(
        f"{'':4} {'bare ms':>8} {'tripwire':>9} {'full':>7} {'watch':>7} {'detect_anomaly':>15}   ({share:.1%} of steps sampled)"
    )
    for name in names or list(WORKLOADS):
        rows = []
        for seed in range(ROUNDS):
            bare = timed(fresh(name, seed)[2], STEPS[name])
            idle = observed(name, seed, None, STEPS[name]) / bare
            full = observed(name, seed, 1, SAMPLED[name]) / bare
            rows.append(
                (bare * 1e3, idle, full, idle + share * (full - idle), anomaly(name, seed, SAMPLED[name]) / bare)
            )
        median = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(
            f"{name:4} {median[0]:8.2f} {median[1]:9.3f} {median[2]:7.2f} {median[3]:7.3f} {median[4]:15.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
