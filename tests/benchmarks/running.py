"""What `netdoctor run` costs beyond the script, and how that grows: `python -m tests.benchmarks.running`.

Every run is a process of its own. Wall time and peak memory of one script are printed side by side for python, `netdoctor run`
without and with experiments. Then layers, width, steps and batch are varied one at a time, and the exponent b of extra ~ size^b is
fitted to what observing takes (CPU seconds), what the experiments take (as the report says), and the extra peak memory.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
import sys
import torch
from torch import nn

layers, width, steps, batch = map(int, sys.argv[1:])
torch.manual_seed(0)
torch.set_num_threads(1)
body = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), *body, nn.Linear(width, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
data = torch.randn(4096, 16)
labels = (data[:, :3] + 0.1 * torch.randn(4096, 3)).argmax(1)
for step in range(steps):
    rows = torch.randint(0, 4096, (batch,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(data[rows]), labels[rows]).backward()
    optimizer.step()
"""
BASE = {"layers": 4, "width": 64, "steps": 200, "batch": 32}
SIZES = {"layers": (2, 16), "width": (32, 256), "steps": (100, 800), "batch": (8, 256)}
BUDGET = "5"  # seconds for experiments
LEAST = 0.01  # seconds or MiB: below, a figure is noise and is left out of a fit


@dataclass(frozen=True)
class Cost:
    """Of one process: seconds by the clock and of CPU, peak memory in MiB, seconds that the report gives to experiments."""

    wall: float
    cpu: float
    peak: float
    experiments: float = 0.0


def run(command: list[str], report: Path | None = None) -> Cost:
    """Run a command to its end; findings are no failure."""
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        actions = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), number) for number in (1, 2)]
        child = os.posix_spawn(command[0], command, os.environ | {"OMP_NUM_THREADS": "1"}, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    wall = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed")
    spent = 0.0 if report is None else float(json.loads(report.read_text())["cost"]["experiments_s"])
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, spent)


def costs(folder: Path, sizes: dict[str, int], times: int = 1) -> tuple[Cost, Cost, Cost]:
    """(the script alone, observed, observed and with experiments); the best of several runs each."""
    script, report = folder / "train.py", folder / "report.json"
    script.write_text(SCRIPT)
    arguments = [str(script), *map(str, sizes.values())]
    doctor = [sys.executable, "-m", "netdoctor", "run", "--quiet", "--json", str(report), "--budget", BUDGET]
    commands = ([sys.executable, *arguments], [*doctor, "--no-experiments", *arguments], [*doctor, *arguments])
    kept = [[run(c, None if c is commands[0] else report) for _ in range(times)] for c in commands]
    alone, observed, whole = (min(found, key=lambda cost: cost.wall) for found in kept)
    return alone, observed, whole


def exponent(sizes: list[int], values: list[float]) -> str:
    """The fitted b of value ~ size^b, or what stands for it."""
    points = [(math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True) if value > LEAST]
    if len(points) < 3:
        return "lost in noise"
    x, y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return f"{slope:+.2f}"


def growth(folder: Path, base: tuple[Cost, Cost, Cost]) -> list[str]:
    """One row for each size that is varied."""
    lines = ["| extra ~ size^b | observing, CPU | experiments | peak memory |", "|---|---|---|---|"]
    for name, others in SIZES.items():
        points = [(BASE[name], base)] + [(size, costs(folder, BASE | {name: size})) for size in others]
        sizes = [size for size, _ in points]
        columns = (
            [observed.cpu - alone.cpu for _, (alone, observed, _) in points],
            [whole.experiments for _, (_, _, whole) in points],
            [observed.peak - alone.peak for _, (alone, observed, _) in points],
        )
        spans = (
            f"{exponent(sizes, c)} ({c[sizes.index(min(sizes))]:.2f} … {c[sizes.index(max(sizes))]:.2f})"
            for c in columns
        )
        lines.append(f"| {name} {min(sizes)} … {max(sizes)} | " + " | ".join(spans) + " |")
    return lines


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = costs(folder, BASE, times=3)
        imported = min(run([sys.executable, "-c", "import torch"]).wall for _ in range(3))
        helped = min(run([sys.executable, "-m", "netdoctor", "run", "--help"]).wall for _ in range(3))
        print(f"\nimport torch {imported:.2f} s, netdoctor run --help {helped:.2f} s; {BASE}:\n")
        print("| | wall | beyond the script | peak memory | beyond the script |\n|---|---|---|---|---|")
        for name, cost in zip(("python", "run --no-experiments", f"run --budget {BUDGET}"), base, strict=True):
            extra, more = cost.wall - base[0].wall, cost.peak - base[0].peak
            print(f"| {name} | {cost.wall:.2f} s | {extra:.2f} s | {cost.peak:.0f} MiB | {more:.0f} MiB |")
        print("\n" + "\n".join(growth(folder, base)))


if __name__ == "__main__":
    main()
