"""A loss that is turned into its negative before `backward`, so that training maximises it."""

from __future__ import annotations

from netdoctor.graph import Operation
from netdoctor.recording import Recording

LOSSES = frozenset(
    {"cross_entropy", "mse_loss", "nll_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div"}
    | {"binary_cross_entropy", "binary_cross_entropy_with_logits"}
)


def negated(recording: Recording) -> Operation | None:
    """The operation that turned a known loss into its negative right before `backward`, if there is one."""
    graph = recording.graph
    last = None if graph is None or graph.loss is None else graph.producer(graph.loss)
    if graph is None or last is None or last.name not in {"neg", "__neg__", "negative"} or not last.inputs:
        return None
    before = graph.producer(last.inputs[0])
    return last if before is not None and before.name in LOSSES else None
