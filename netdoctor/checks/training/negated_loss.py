"""Training that goes up the loss: a minus sign before `backward`, or an optimizer that maximises."""

from __future__ import annotations

import re

from netdoctor.graph import Operation
from netdoctor.recording import Optimizer, Recording

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


def maximising(recording: Recording) -> Optimizer | None:
    """The first optimizer that was built with maximize=True."""
    there = (o for o in recording.optimizers if any(group.get("maximize") is True for group in o.groups))
    return next(there, None)


def without_maximize(optimizer: Optimizer) -> str:
    """The user's line without the option; the general form where the line is not known."""
    text = optimizer.source.text if optimizer.source is not None else ""
    mended = re.sub(r",\s*maximize\s*=\s*True", "", text)
    return mended if mended != text else "for group in optimizer.param_groups:\n    group['maximize'] = False"
