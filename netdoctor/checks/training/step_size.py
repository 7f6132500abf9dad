"""What keeps the size of a step from growing with the gradients that were added up for it."""

from __future__ import annotations

from netdoctor.graph import StepGraph
from netdoctor.recording import Recording


def scaled_down(graph: StepGraph) -> bool:
    """Whether something outside of the model scales the loss down."""
    trained = {value.index for value in graph.values if value.requires_grad}
    made = [o for o in graph.loss_operations() if not o.inside and trained.intersection(o.outputs)]
    numbers = [(o.name, o.attributes.get("1", o.attributes.get("0"))) for o in made]
    known = [(name, x) for name, x in numbers if isinstance(x, int | float) and not isinstance(x, bool)]
    return any((x >= 2 if "div" in name else 0 < x <= 0.5 if "mul" in name else False) for name, x in known)


def divides(recording: Recording) -> bool:
    """Whether the optimizer divides by the size of the gradient, or clipping takes it away."""
    return (
        any("eps" in group for o in recording.optimizers for group in o.groups)
        or recording.counts.get("clip", 0) > recording.steps / 2
    )
