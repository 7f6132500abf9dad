"""What an observation holds after a long training: `python -m tests.benchmarks.memory [STEPS]`.

Trains a small model twice, without and with an observation, each in a process of its own, and prints how much more memory the
process holds after a tenth of the steps and at the end. What grows with the steps shows in the difference of the two.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

STEPS = 100_000


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measured(steps: int, observed: bool) -> tuple[int, int, int]:
    """(bytes held after a tenth of the steps, at the end, length of the saved recording)."""
    import torch
    from torch import nn

    from netdoctor import recordingfile
    from netdoctor.judging import Options
    from netdoctor.session import Session

    torch.manual_seed(0)
    session = Session(Options(experiments=False))
    if observed:
        session.start()
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    early = 0
    for step in range(steps):
        x = torch.randn(16, 16)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        if step == steps // 10:
            early = resident()
    late = resident()
    if not observed:
        return early, late, 0
    session.stop()
    return early, late, sum(map(len, recordingfile.lines(session.recording)))


def child(steps: int, observed: bool) -> tuple[int, int, int]:
    """`measured` in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--child", str(steps), str(int(observed))]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    early, late, length = map(int, out.stdout.split())
    return early, late, length


def main() -> None:
    """Print the figures."""
    if sys.argv[1:2] == ["--child"]:
        sys.stdout.write("{} {} {}\n".format(*measured(int(sys.argv[2]), sys.argv[3] == "1")))
        return
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    begun = time.perf_counter()
    (early, late, _), (seen_early, seen_late, length) = child(steps, False), child(steps, True)
    growth = (seen_late - seen_early) - (late - early)
    sys.stdout.write(
        f"{steps} steps in {time.perf_counter() - begun:.0f} s: observation holds {(seen_late - late) / 2**20:.1f} MiB more than"
        f" the training alone, {growth / 2**10:.0f} KiB of it since step {steps // 10}; the recording is"
        f" {length / 2**20:.2f} MiB\n"
    )


if __name__ == "__main__":
    main()
