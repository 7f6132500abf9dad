"""The check `slow-data-loading`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class SlowDataLoading(Check):
    """The training waits for its batches for longer than it computes.

    What it is: a Dataset that decodes, augments or reads more slowly than the model learns.
    Why it hurts: the device is idle for most of the time; the same training could take less than half as long.
    How it is decided: the time within DataLoader's `next` is more than half of the wall time of the steps. Measured steps,
    first steps and those with an evaluation or the end of an epoch are left out. Advice only.
    When it stays silent: fewer than `steps` such steps, or less than `seconds` waited in them; batches that do not
    come from a DataLoader.
    Fix: workers, pinned memory and prefetching; where there are workers already, less work per sample.
    Sources: PyTorch's Performance Tuning Guide; the shares are this project's own.
    """

    name = "slow-data-loading"

    share: float = 0.5  # of the wall time: with loading on the side the training is at least twice as fast
    steps: int = 50  # files that are read for the first time are slow
    seconds: float = 3.0  # below this nobody would gain anything

    def judge(self, recording: Recording) -> Iterator[Finding]:
        steps, wall, waited = (
            float(recording.facts.get(f"loader_{name}", 0.0)) for name in ("steps", "wall_s", "waited_s")
        )
        if steps < self.steps or waited < self.seconds or waited <= self.share * wall:
            return
        made = next((event for event in recording.events if event.kind == "loader"), None)
        workers = 0 if made is None else int(made.value)
        share = waited / wall
        yield Finding(
            self.name,
            f"{100 * share:.0f} % of the time is spent waiting for batches",
            Severity.ADVICE,
            f"{1000 * waited / steps:.3g} ms of {1000 * wall / steps:.3g} ms a step, over {steps:.0f} steps, with "
            f"{workers or 'no'} worker{'' if workers == 1 else 's'}.",
            Location.at(made.source if made else None, step=0),
            (Evidence("waiting over the time of a step", 100 * share, ">", 100 * self.share, "%"),),
            (_fix(workers, recording.header.device.startswith("cuda")),),
            Certainty.MEASURED,
            share=share,
        )


def _fix(workers: int, on_gpu: bool) -> Fix:
    more = max(4, 2 * workers)
    pinned = ", pin_memory=True" if on_gpu else ""
    says = (
        "Load the next batches while the model computes." if not workers else "More workers, or less work per sample."
    )
    code = f"DataLoader(..., num_workers={more}, persistent_workers=True{pinned})"
    return Fix("load-in-workers", says, code, Reach.RUN)
