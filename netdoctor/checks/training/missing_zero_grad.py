"""Gradients that are never cleared, so that each step adds to all before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import assigned, first_source, variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

BY_HAND = "for parameter in model.parameters():\n    parameter.grad = None"  # of a loop without an optimizer


@dataclass(frozen=True)
class MissingZeroGrad(Check):
    """The gradients of earlier steps are still there when backward adds new ones to them.

    What it is: PyTorch adds to `.grad`; without `zero_grad` each update uses the sum of all gradients so far.
    Why it hurts: the steps grow with the number of steps, old gradients point nowhere, and the loss oscillates or
    diverges.
    How it is decided: from events. In each observed step `.grad` was already filled when backward began, although an
    optimizer step had used it. Of several optimizers each is looked at by itself.
    When it stays silent: gradient accumulation with a regular cycle; several backwards per step with as many clearings
    as steps; fewer than 3 steps.
    Fix: `optimizer.zero_grad()` once per step, before backward.
    Sources: PyTorch's tutorial on zeroing gradients; Karpathy's list of the most common neural net mistakes.
    """

    name = "missing-zero-grad"
    explains = frozenset(
        {"learning-rate-too-high", "loss-diverging", "loss-not-decreasing", "unstable-loss", "exploding-gradients"}
        | {"non-finite-parameter", "non-finite-activation", "non-finite-gradient", "accumulation-scaling"}
        | {"cannot-overfit-tiny-batch", "dead-relu", "saturated-activation", "constant-layer", "exploding-activations"}
    )

    steps: int = 3  # the first backward finds nothing, so two more show a habit

    def judge(self, recording: Recording) -> Iterator[Finding]:
        yield from self._of_several(recording)
        if not recording.facts.get("gradients_before_backward") or recording.steps < self.steps:
            return
        cleared, backwards = recording.counts.get("zero_grad", 0), recording.counts.get("backward", 0)
        if backwards > recording.steps and cleared >= recording.steps:
            return  # several backwards share one step, and it is cleared
        source = first_source(recording, "backward")
        clear = f"{variable(recording)}.zero_grad()" if recording.optimizers else BY_HAND
        code = f"{clear}\n{source.text if source and source.text else 'loss.backward()'}"
        yield Finding(
            self.name,
            f"gradients are never cleared: {cleared or 'no'} zero_grad in {recording.steps} steps",
            Severity.ERROR,
            "Each step uses the sum of all gradients so far instead of the last one.",
            Location.at(source, step=1),
            (Evidence("zero_grad calls per optimizer step", cleared / max(1, recording.steps), "<", 1.0),),
            (Fix("zero-grad", "Clear the gradients once per step, before backward.", code, Reach.RUN),),
            first_step=1,  # the first step is still right
            share=1.0,
        )

    def _of_several(self, recording: Recording) -> Iterator[Finding]:
        for optimizer in recording.optimizers if len(recording.optimizers) > 1 else ():
            stale, clean = (recording.counts.get(f"{kind} step {optimizer.index}", 0) for kind in ("stale", "clean"))
            if clean or stale < self.steps:
                continue
            name = assigned(optimizer) or "optimizer"
            yield Finding(
                self.name,
                f"the gradients of {name} are never cleared",
                Severity.ERROR,
                f"Each step of {name} uses the sum of all gradients so far, those of the other losses included.",
                Location.at(optimizer.source, step=1),
                (Evidence(f"observed steps of {name} on old gradients", stale, "≥", self.steps),),
                (Fix("zero-grad", f"Clear them before the loss of {name}.", f"{name}.zero_grad()", Reach.RUN),),
                first_step=1,
                share=1.0,
            )
