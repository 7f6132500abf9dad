"""Backward passes without any optimizer step: the parameters stay what they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import first_source, variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class MissingOptimizerStep(Check):
    """An optimizer was built and gradients are computed, but no step is ever taken.

    What it is: `optimizer.step()` is missing, or behind a condition that never holds.
    Why it hurts: the parameters do not change, so nothing is learned.
    How it is decided: from events. At least 8 backward passes, an optimizer, no step, and unchanged parameters.
    When it stays silent: scripts without an optimizer (saliency maps, adversarial examples, updates by hand); steps
    that a loss scaler skipped; short runs, which may end before an accumulation cycle does.
    Fix: `optimizer.step()` after backward.
    Sources: PyTorch's tutorial on the optimization loop.
    """

    name = "missing-optimizer-step"
    explains = frozenset({"loss-not-decreasing", "missing-zero-grad", "accumulation-scaling", "scheduler-order"})

    backwards: int = 8  # usual accumulation cycles are 2 to 8 long

    def judge(self, recording: Recording) -> Iterator[Finding]:
        backwards, skipped = (recording.counts.get(kind, 0) for kind in ("backward", "scaler-skip"))
        stepped = recording.steps or recording.counts.get("step", 0)
        if stepped or skipped or backwards < self.backwards or not recording.optimizers:
            return
        if recording.facts.get("parameters_changed") is not False:
            return
        source = first_source(recording, "backward")
        name = variable(recording)
        code = f"{source.text if source and source.text else 'loss.backward()'}\n{name}.step()"
        yield Finding(
            self.name,
            f"{backwards} backward passes and not one optimizer step",
            Severity.ERROR,
            f"The parameters are the same after {backwards} backward passes: {name}.step() was never called.",
            Location.at(source, step=0),
            (Evidence("optimizer steps", 0.0, "<", 1.0), Evidence("backward passes", backwards, "≥", self.backwards)),
            (Fix("optimizer-step", "Step the optimizer after backward.", code, Reach.RUN),),
            first_step=0,
            share=1.0,
        )
