"""The check `memory-growth`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import first_source
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, SourceLine

SHARE = "graphs alive, share"


@dataclass(frozen=True)
class MemoryGrowth(Check):
    """Something holds on to the autograd graph of each step, so that memory grows with the number of steps.

    What it is: a sum (`total += loss`), a list or a state that is carried on keeps a tensor with its history.
    Why it hurts: memory grows until the run dies, hours in; a backward through the old history becomes slower each step.
    How it is decided: each observed step's graph is marked, and later steps count the marks that are still alive. At
    least 8 graphs, 3 in 4 of those marked since the oldest, stay alive together over 16 steps or more while it is the
    oldest, to the end of the run or until they are all let go and it begins anew.
    When it stays silent: single graphs that are kept (the best loss); caches of a fixed length, from which the oldest
    falls as a new one comes; losses of several steps that are summed for one backward.
    Fix: `.item()` for numbers, `.detach()` for tensors, in the line that keeps them.
    Sources: PyTorch's FAQ, "don't accumulate history across your training loop"; its notes on truncated
    backpropagation through time.
    """

    name = "memory-growth"

    alive: int = 8  # graphs: variables of the loop hold one or two
    steps: int = 16  # that the oldest one stays: shorter than this are the parts of a rollout or an accumulation
    share: float = 0.75  # of the graphs since the oldest one: what is kept is kept step after step
    samples: int = 4  # a cache that lets go of its oldest shows another one in nearly every sample

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = self._run(recording)
        if found is None:
            return
        at, alive, age = found
        source = first_source(recording, "graphs retained")
        yield Finding(
            self.name,
            f"the graphs of {age} steps are kept alive until step {at}",
            Severity.WARNING,
            f"Of the steps that were watched, {alive} still have their graph: a tensor with its history is kept.",
            Location.at(source, step=at - age),
            (Evidence("graphs of earlier steps alive", alive, "≥", self.alive),),
            (Fix("detach-history", "Keep the number or a detached tensor.", _mended(source), Reach.TEXT),),
            first_step=at - age,
            share=1.0,
        )

    def _run(self, recording: Recording) -> tuple[int, int, int] | None:
        """(step, graphs alive, age of the oldest) at the end of the longest run of growth; None when there is none."""
        counts, ages, shares = (recording.scalars.get(k) for k in ("graphs alive", "graph age", SHARE))
        if counts is None or ages is None or shares is None:
            return None
        rows = list(zip(*(x.tolist() for x in (ages.steps, counts.values, ages.values, shares.values)), strict=True))
        runs = [list(run) for _, run in groupby(rows, key=lambda row: row[0] - row[2])]
        best: tuple[int, int, int] | None = None
        for number, run in enumerate(runs):
            step, alive, age, share = run[-1]
            grown = alive >= self.alive and share >= self.share and age >= self.steps and len(run) >= self.samples
            following = runs[number + 1][0] if number + 1 < len(runs) else None
            anew = following is None or following[2] < age / 2
            if grown and anew and (best is None or age > best[2]):
                best = (int(step), int(alive), int(age))
        return best


def _mended(source: SourceLine | None) -> str:
    text = source.text if source is not None else ""
    if found := re.search(r"\.(append|add)\((.+)\)", text):
        return f"{text[: found.end(2)]}.detach(){text[found.end(2) :]}"
    if found := re.search(r"\+=\s*([\w.]+)$", text):
        return f"{text}.item()"
    return "total_loss += loss.item()\nhidden = hidden.detach()"
