"""One process whose loss is unlike that of all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Array, Recording

_PREFIX = "loss (rank "
_CODE = 'print(f"rank {torch.distributed.get_rank()}", x.shape, x.mean().item(), y.float().mean().item())'


@dataclass(frozen=True)
class RankImbalance(Check):
    """One process's loss is not finite while the others' are, or stays far from theirs.

    What it is: the processes of one training see parts of the same data, so that their losses differ by chance only.
    Why it hurts: gradients are averaged over processes: one that sees other or broken data spoils the step of all.
    How it is decided: losses of all processes at the same measured steps. Each is compared with the median of the others.
    When it stays silent: fewer than `samples` compared steps, ratios that change sides, losses below zero.
    Fix: look at the data of the process that is named: its shard, its sampler, its seed, the size of its batches.
    Sources: PyTorch's notes on DistributedDataParallel and DistributedSampler; the limits are this project's own.
    """

    name = "rank-imbalance"

    samples: int = 8  # compared steps: fewer may lie on one side by chance (two of 2^8)
    ratio: float = 3.0  # median over the steps; batches of one distribution rarely differ by a half
    same_side: float = 0.9  # share of the steps with the loss on the same side of the others'

    def judge(self, recording: Recording) -> Iterator[Finding]:
        table = _table(recording)
        if table is None:
            return
        steps, losses = table
        finite = np.isfinite(losses)
        for rank in range(losses.shape[1]):
            others = np.delete(losses, rank, axis=1)
            broken = ~finite[:, rank] & np.isfinite(others).all(axis=1)
            if broken.any():
                step = int(steps[broken][0])
                yield self._finding(
                    f"the loss of rank {rank} is not finite at step {step}, all others' are", rank, step, 1.0
                )
                return
            sound = finite[:, rank] & np.isfinite(others).all(axis=1) & (losses > 0).all(axis=1)
            if sound.sum() < self.samples:
                continue
            logs = np.log(losses[sound, rank] / np.median(others[sound], axis=1))
            middle = float(np.exp(abs(np.median(logs))))
            if middle < self.ratio or max((logs > 0).mean(), (logs < 0).mean()) < self.same_side:
                continue
            if losses.shape[1] == 2 and np.median(logs) < 0:
                continue  # of two, the larger one is named
            side = "above" if np.median(logs) > 0 else "below"
            title = f"the loss of rank {rank} stays {middle:.1f} times {side} the others'"
            yield self._finding(title, rank, int(steps[sound][0]), middle)
            return

    def _finding(self, title: str, rank: int, step: int, measured: float) -> Finding:
        return Finding(
            self.name,
            title,
            Severity.WARNING,
            "Gradients are averaged over the processes, so what is wrong with the data of one spoils the steps of all.",
            Location(step=step),
            (Evidence(f"loss of rank {rank} by the median of the others", measured, ">", self.ratio),),
            (
                Fix(
                    "look-at-rank-data",
                    f"Look at what rank {rank} reads: its shard, sampler, batch size.",
                    _CODE,
                    Reach.TEXT,
                ),
            ),
            first_step=step,
        )


def _table(recording: Recording) -> tuple[Array, Array] | None:
    """(steps, losses of shape (steps, ranks)) where at least two ranks were compared."""
    series = [s for name, s in sorted(recording.scalars.items(), key=_number) if name.startswith(_PREFIX)]
    if len(series) < 2 or any(len(s.steps) != len(series[0].steps) for s in series):
        return None
    return series[0].steps.astype(np.float64), np.stack([s.values for s in series], axis=1)


def _number(item: tuple[str, object]) -> int:
    name = item[0].removeprefix(_PREFIX).removesuffix(")")
    return int(name) if name.isdecimal() else -1
