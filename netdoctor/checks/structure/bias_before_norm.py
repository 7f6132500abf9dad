"""The check `bias-before-norm`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.structure.gradients import listed
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

LINEAR = frozenset({"linear", "addmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"})
NORMS = frozenset({"batch_norm", "instance_norm"})


@dataclass(frozen=True)
class BiasBeforeNorm(Check):
    """A layer has a bias, and a norm right behind it takes that bias away.

    What it is: BatchNorm and InstanceNorm subtract the mean of each channel, and with it any constant.
    Why it hurts: it does not, much: the bias gets no gradient but rounding, and costs memory and time.
    How it is decided: on the captured step the result of a layer with a trained bias goes into such a norm and nowhere
    else. Advice only, one finding for all layers.
    When it stays silent: LayerNorm and GroupNorm, which mix channels; anything between the two; norms in evaluation
    mode, which subtract a constant of their own.
    Fix: `bias=False` in each of these layers.
    Sources: Ioffe and Szegedy 2015, section 3.2.
    """

    name = "bias-before-norm"

    least: int = 1  # layers: one is worth a line of advice

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = {o.module: o for graph in graphs(recording)[:1] for o in graph.named(LINEAR) if _wasted(graph, o)}
        if len(found) < self.least:
            return
        layers = [layer for path in found if (layer := recording.layer_at(path)) is not None]
        source = layers[0].source if layers else None
        yield Finding(
            self.name,
            f"the norm behind {listed(list(found))} takes {'its bias' if len(found) == 1 else 'their biases'} away",
            Severity.ADVICE,
            "A norm subtracts the mean of each channel, whatever the bias adds to it.",
            Location.at(source, next(iter(found)), step=0),
            (Evidence("layers with a bias right before a norm", len(found), "≥", self.least),),
            (Fix("drop-bias", "Leave the bias out.", "bias=False", Reach.MODEL),),
            Certainty.INFERRED,
            places=tuple(found),
        )


def _wasted(graph: StepGraph, operation: Operation) -> bool:
    """Whether an operation adds a trained vector to each channel, and a norm over the batch alone reads the result."""
    if not operation.outputs or not operation.module:
        return False
    values = [graph.values[i] for i in operation.inputs]
    if not any(v.origin == "parameter" and v.requires_grad and len(v.shape) == 1 for v in values):
        return False
    readers = graph.consumers(operation.outputs[0])
    return bool(readers) and all(o.name in NORMS and not _frozen(o) for o in readers)


def _frozen(norm: Operation) -> bool:
    """Whether a norm uses its running statistics: `training` is the sixth argument of batch_norm."""
    return norm.attributes.get("training", norm.attributes.get("5", True)) is False
