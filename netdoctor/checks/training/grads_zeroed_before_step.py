"""Gradients that are cleared between backward and step, so that the step has nothing to use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import first_source, variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class GradsZeroedBeforeStep(Check):
    """`zero_grad` runs between backward and step, so the optimizer sees no gradients.

    What it is: the three calls of a training step in the wrong order.
    Why it hurts: the parameters do not move, or only by weight decay and old momentum.
    How it is decided: from events. In each observed step the gradients that backward had made were cleared before the
    optimizer stepped.
    When it stays silent: only the gradients of another model are cleared (a GAN's two optimizers); fewer than 2 steps.
    Fix: zero_grad, backward, step, in this order.
    Sources: PyTorch's tutorial on the optimization loop.
    """

    name = "grads-zeroed-before-step"
    explains = frozenset(
        {"loss-not-decreasing", "missing-optimizer-step", "no-gradient", "vanishing-gradients", "dead-relu"}
        | {"cannot-overfit-tiny-batch", "learning-rate-too-low", "detached-graph"}
    )

    steps: int = 2  # a single step may follow a deliberate discard

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if not recording.facts.get("zeroed_before_step") or recording.steps < self.steps:
            return
        cleared = first_source(recording, "zero_grad")
        name = variable(recording)
        backward = first_source(recording, "backward")
        order = (f"{name}.zero_grad()", (backward.text if backward else "") or "loss.backward()", f"{name}.step()")
        yield Finding(
            self.name,
            f"the gradients are cleared before {name}.step() can use them",
            Severity.ERROR,
            "zero_grad runs between backward and step in every step, so the optimizer sees no gradients.",
            Location.at(cleared, step=0),
            (Evidence("steps taken on cleared gradients", recording.steps, "≥", self.steps),),
            (Fix("reorder-step", "Clear first, then backward, then step.", "\n".join(order), Reach.RUN),),
            first_step=0,
            share=1.0,
        )
