"""What keeps the size of a step from growing with the gradients that were added up for it."""

from __future__ import annotations

from netdoctor.graph import StepGraph
from netdoctor.recording import Recording

_DIVIDE = ("div", "div_", "idiv", "itruediv", "divide", "divide_", "true_divide", "true_divide_")
_SCALING = frozenset((*_DIVIDE, "mul", "mul_", "imul", "multiply", "multiply_"))


def scaled_down(graph: StepGraph) -> bool:
    """Whether something outside of the model scales the loss down."""
    made = [
        o
        for o in graph.named_behind(_SCALING)
        if not o.inside and any(graph.values[i].requires_grad for i in o.outputs)
    ]
    numbers = [(o.name, o.attributes.get("1", o.attributes.get("0"))) for o in made]
    known = [(name, x) for name, x in numbers if isinstance(x, int | float) and not isinstance(x, bool)]
    return any((x >= 2 if "div" in name else 0 < x <= 0.5 if "mul" in name else False) for name, x in known)


def divides(recording: Recording) -> bool:
    """Whether the optimizer divides by the size of the gradient, or clipping takes it away."""
    return (
        any("eps" in group for o in recording.optimizers for group in o.groups)
        or recording.counts.get("clip", 0) > recording.steps / 2
    )
