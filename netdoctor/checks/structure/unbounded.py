"""Terms of derivatives that were to bound a training, and do not for want of a graph: what explodes follows from that."""

from __future__ import annotations

from dataclasses import replace

from netdoctor.checks.loss.symptoms import EXPLOSION
from netdoctor.finding import Evidence, Finding
from netdoctor.recording import Recording

BOUNDS = "derivatives/bounds"
GROWTH = 10.0  # times: healthy gradient norms vary within ten (exploding-gradients)


def unbounded(without: float, bounded: float) -> bool:
    """Whether the gradient of a copy as it is grows far more than that of one whose derivatives have a graph, which does not."""
    return bounded < GROWTH and without >= GROWTH * max(bounded, 1.0)


def with_explosion(recording: Recording, found: Finding) -> Finding:
    """The finding of derivatives without a graph, as the cause of an explosion where a copy showed that it is."""
    arm = recording.arms.get(BOUNDS)
    if arm is None or arm.failure:
        return found
    grown, bounded = float(arm.facts["without"]), float(arm.facts["with"])
    if not unbounded(grown, bounded):
        return found
    steps = int(float(arm.facts["steps"]))
    quantity = f"growth of the gradient in {steps} steps on a copy (with a graph: {bounded:.2g})"
    evidence = Evidence(quantity, grown, "≥", GROWTH * max(bounded, 1.0))
    says = " It was to hold the training back, and cannot: a copy explodes without its graph, and does not with it."
    return replace(
        found,
        explanation=found.explanation + says,
        evidence=(*found.evidence, evidence),
        causes=found.causes | EXPLOSION,
    )
