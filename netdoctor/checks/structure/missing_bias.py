"""The check `missing-bias`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.structure.gradients import listed
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

LINEAR = frozenset({"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"})
_ACTIVATIONS = "relu leaky_relu relu6 elu selu celu gelu silu mish softplus tanh sigmoid hardtanh hardswish prelu"
ACTIVATIONS = frozenset(_ACTIVATIONS.split())


@dataclass(frozen=True)
class MissingBias(Check):
    """Layers without a bias go straight into an activation.

    What it is: `bias=False`, which is right before a norm, where there is no norm.
    Why it hurts: each unit's threshold is fixed at zero, so that the network can only scale what it sees.
    How it is decided: on the captured step the result of a layer without any vector added goes into an activation and
    nowhere else, for at least half of the layers of which that is so, with and without a bias. Advice only.
    When it stays silent: layers before a norm or an added vector; projections of attention; output layers; gated units
    of language models, which multiply (SwiGLU); a few layers among many with a bias.
    Fix: `bias=True` in each of these layers.
    Sources: advice B4; Goodfellow, Bengio and Courville, Deep Learning, 6.1 (a linear layer is affine).
    """

    name = "missing-bias"

    share: float = 0.5  # of the layers before an activation: fewer look like a choice

    def judge(self, recording: Recording) -> Iterator[Finding]:
        held = {
            o.module: _bare(graph, o)
            for graph in graphs(recording)[:1]
            for o in graph.named(LINEAR)
            if _active(graph, o)
        }
        found = [path for path, bare in held.items() if bare]
        if not found or len(found) < self.share * len(held):
            return
        layer = recording.layer_at(found[0])
        yield Finding(
            self.name,
            f"{listed(found)} {'has' if len(found) == 1 else 'have'} no bias, and no norm behind",
            Severity.ADVICE,
            "Each unit's threshold is fixed at zero.",
            Location.at(layer.source if layer else None, found[0], step=0),
            (Evidence("layers before an activation without a bias", len(found), "≥", self.share * len(held)),),
            (Fix("add-bias", "Give them a bias.", "bias=True", Reach.MODEL),),
            Certainty.INFERRED,
            places=tuple(found),
        )


def _active(graph: StepGraph, operation: Operation) -> bool:
    """Whether an operation is a layer of weights whose result goes into an activation alone, which nothing gates."""
    if not operation.outputs or not operation.module:
        return False
    readers = graph.consumers(operation.outputs[0])
    if len(readers) != 1 or readers[0].name not in ACTIVATIONS or not readers[0].outputs:
        return False
    return all(o.name != "mul" or len(o.inputs) < 2 for o in graph.consumers(readers[0].outputs[0]))


def _bare(graph: StepGraph, operation: Operation) -> bool:
    values = [graph.values[i] for i in operation.inputs]
    return len(values) == 2 and not any(len(value.shape) == 1 for value in values[1:])
