"""A summed loss whose step grows with the batch, in a training that suffers from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import LOSSES, graphs, line
from netdoctor.checks.loss.lines import averaged
from netdoctor.checks.signal import outcome
from netdoctor.checks.training.lr_trials import rescue
from netdoctor.checks.training.update_ratios import medians
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording, Stat
from netdoctor.trend import judge


@dataclass(frozen=True)
class LossSumReduction(Check):
    """The loss is a sum over the batch, so that each step is as many times larger as the batch has samples.

    What it is: `reduction="sum"`, or `.sum()` of a loss per sample, with a learning rate that was meant for a mean.
    Why it hurts: gradients grow with the batch size: steps overshoot, the loss diverges, units die.
    How it is decided: on the captured step the loss is a sum over at least 4 samples, and training is hurt: the loss
    does not fall, and a learning rate 10 or 100 times lower trains on a copy, or (without trials) half of the weight
    matrices change by more than a tenth per step.
    When it stays silent: a training that learns (the sums of a VAE); a sum that is divided by the number of samples;
    adaptive optimizers, which do not feel the scale, unless the trial says so.
    Fix: the mean over the batch, in the same line.
    Sources: advice A6 (divide gradients by the batch size); TheDeepChecker (loss doubled when the batch is).
    """

    name = "loss-sum-reduction"
    needs = frozenset({Stat.RMS})
    arms = frozenset({"trial/control", "trial/lr x0.1", "trial/lr x0.01"})
    explains = frozenset(
        {"learning-rate-too-high", "loss-diverging", "loss-not-decreasing", "exploding-gradients", "dead-relu"}
        | {"unstable-loss", "non-finite-parameter", "non-finite-activation", "non-finite-gradient", "initial-loss"}
        | {"exploding-activations", "saturated-activation", "cannot-overfit-tiny-batch", "clip-too-small"}
    )

    samples: int = 4  # a sum over fewer is a mean but for a small factor
    ratio: float = 0.1  # update per step and weight; a hundred times what is healthy (CS231n)
    gain: float = 0.3  # of the loss in a trial, as in learning-rate-too-high
    stuck: float = 0.1  # of the loss in the control arm, as there

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = next((pair for graph in graphs(recording) if (pair := _sum(graph)) is not None), None)
        if found is None or found[1] < self.samples or not outcome.hurt(judge(recording)):
            return
        ratios = sorted(medians(recording).values())
        overshoots = bool(ratios) and ratios[len(ratios) // 2] > self.ratio
        if rescue(recording, ("0.1", "0.01"), self.gain, self.stuck) is None and not overshoots:
            return
        operation, count = found
        source = line(recording, operation)
        yield Finding(
            self.name,
            f"the loss is a sum over {count} numbers, and the learning rate does not allow for it",
            Severity.WARNING,
            f"A sum makes gradients {count} times as large as a mean, and so each step. {outcome.words(judge(recording))}",
            Location.at(source, None, operation.name, step=0),
            (Evidence("numbers summed up", count, "≥", self.samples),),
            (Fix("mean-reduction", "Take the mean.", averaged(source), Reach.RUN),),
            first_step=0,
            share=1.0,
        )


def _sum(graph: StepGraph) -> tuple[Operation, int] | None:
    """The operation that sums the loss up, when nothing divides it afterwards, and over how many samples."""
    last = None if graph.loss is None else graph.producer(graph.loss)
    if last is None or not last.inputs:
        return None
    summed = last.name == "sum" and graph.values[last.outputs[0]].shape == ()
    if not summed and not (last.name in LOSSES and last.attributes.get("reduction") == "sum"):
        return None
    shape = graph.values[last.inputs[0]].shape
    return last, (prod(shape) if last.name != "cross_entropy" else shape[0] if shape else 1)
