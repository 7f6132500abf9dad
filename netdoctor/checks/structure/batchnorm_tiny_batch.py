"""BatchNorm over a handful of values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line, place
from netdoctor.checks.signal.outcome import hurt
from netdoctor.checks.structure.gradients import listed
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph, Value
from netdoctor.recording import Recording
from netdoctor.trend import judge

SYMPTOMS = """
loss-not-decreasing unstable-loss noisy-gradients batchnorm-drift cannot-overfit-tiny-batch learning-rate-too-high
learning-rate-too-low loss-diverging exploding-gradients
"""


@dataclass(frozen=True)
class BatchnormTinyBatch(Check):
    """BatchNorm normalises each channel by the mean and deviation of a handful of values.

    What it is: batches of 2 or 4 samples (a small `batch_size`, one sample at a time) with BatchNorm layers.
    Why it hurts: the statistics of so few values are noise: a sample's output depends on its neighbours (two values
    always become +1 and -1, whatever they were), and the running statistics used in evaluation are others.
    How it is decided: in the captured step a BatchNorm in training mode, with a weight that trains, has fewer than 8
    values per channel (batch × positions), or the batch is a single sample. An error where training does not work.
    When it stays silent: 8 values and more (images of 4 × 4 in batches of one are single samples); BatchNorm in
    evaluation mode; frozen ones; LayerNorm, GroupNorm, InstanceNorm.
    Fix: GroupNorm or LayerNorm, a larger batch; accumulation of gradients does not help.
    Sources: Ioffe, Batch Renormalization, 2017; Wu and He, Group Normalization, 2018 (error by batch size); advice B-4.
    """

    name = "batchnorm-tiny-batch"
    explains = frozenset(SYMPTOMS.split())

    values: int = 8  # per channel: the deviation of fewer is off by a quarter and more, 1/sqrt(2 (n - 1))

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found: dict[str, tuple[Operation, Value]] = {}
        for graph in graphs(recording)[:1]:
            for operation in graph.loss_operations()[::-1]:
                if operation.name == "batch_norm" and operation.attributes.get("training", True):
                    value = graph.values[operation.inputs[0]]
                    if self._tiny(value) and _trains(graph, operation):
                        found.setdefault(place(operation), (operation, value))
        if found:
            yield self._finding(recording, found)

    def _tiny(self, value: Value) -> bool:
        return len(value.shape) > 1 and (per_channel(value) < self.values or value.shape[0] == 1)

    def _finding(self, recording: Recording, found: dict[str, tuple[Operation, Value]]) -> Finding:
        operation, value = min(found.values(), key=lambda pair: per_channel(pair[1]))
        number, batch, channels = per_channel(value), value.shape[0], value.shape[1]
        single = number >= self.values
        title = f"BatchNorm normalises over {number} values per channel"
        group = f"nn.GroupNorm({groups(channels)}, {channels})"
        evidence = Evidence("samples in the batch", batch, "=", 1) if single else None
        return Finding(
            self.name,
            f"{title}, all of one sample" if single else f"{title}: their mean and deviation are mostly chance",
            Severity.ERROR if hurt(judge(recording)) else Severity.WARNING,
            f"The batch has {batch} {'sample' if batch == 1 else 'samples'}. In evaluation mode running statistics are "
            f"used, which differ. Layers: {listed(list(found))}.",
            Location.at(line(recording, operation), operation.module or None, step=0),
            (evidence or Evidence("values per channel", number, "<", self.values),),
            (
                Fix("groupnorm", "Normalise without the batch.", group, Reach.MODEL),
                Fix("larger-batch", f"Or take batches of at least {4 * self.values} samples.", "", Reach.RUN),
            ),
            first_step=0,
            places=tuple(found),
            share=1.0,
        )


def per_channel(value: Value) -> int:
    """How many values of one channel there are."""
    return prod(value.shape) // max(1, value.shape[1])


def _trains(graph: StepGraph, operation: Operation) -> bool:
    weights = [graph.values[i] for i in operation.inputs[1:] if graph.values[i].origin == "parameter"]
    return any(w.requires_grad for w in weights) or not weights


def groups(channels: int) -> int:
    """Into how many groups GroupNorm may part this many channels: up to 8."""
    return next(number for number in (8, 4, 2, 1) if channels % number == 0)
