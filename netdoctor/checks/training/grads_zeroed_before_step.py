"""Gradients that are cleared between backward and step, so that the step has nothing to use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.checks.training.optimizer_line import first_source, variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Optimizer, Recording, SourceLine


@dataclass(frozen=True)
class GradsZeroedBeforeStep(Check):
    """`zero_grad` runs between backward and step, so the optimizer sees no gradients.

    What it is: the three calls of a training step in the wrong order; with several optimizers, all gradients are cleared
    after the first of them stepped and before the next one does.
    Why it hurts: the parameters do not move, or only by weight decay and old momentum.
    How it is decided: from events. In nearly every step of an optimizer the gradients that backward had made for it were
    cleared before, and no other gradients were there.
    When it stays silent: the gradients are computed anew before the step, or set by hand (a GAN's two optimizers, gradients
    of single samples); fewer than 2 steps.
    Fix: zero_grad, backward, step, in this order; zero_grad only after the last optimizer has stepped.
    Sources: PyTorch's tutorial on the optimization loop.
    """

    name = "grads-zeroed-before-step"
    explains = frozenset(
        {"loss-not-decreasing", "missing-optimizer-step", "no-gradient", "vanishing-gradients", "dead-relu"}
        | {"cannot-overfit-tiny-batch", "learning-rate-too-low", "detached-graph"}
    )

    steps: int = 2  # a single step may follow a deliberate discard
    share: float = 0.9  # of an optimizer's steps; one that has something to step on now and then may be meant so

    def judge(self, recording: Recording) -> Iterator[Finding]:
        hit = [o for o in recording.optimizers if self._emptied(recording, o)]
        if not hit:
            return
        stepping = sum(o.steps > 0 for o in recording.optimizers)
        yield self._finding(recording, hit, whole=len(hit) == stepping)

    def _emptied(self, recording: Recording, optimizer: Optimizer) -> bool:
        return optimizer.steps >= self.steps and _times(recording, optimizer) >= self.share * optimizer.steps

    def _finding(self, recording: Recording, hit: list[Optimizer], whole: bool) -> Finding:
        cleared = first_source(recording, f"zeroed step {hit[0].index}") or first_source(recording, "zero_grad")
        names = tuple(name for optimizer in hit for name in optimizer.parameters)
        trained = sum(len(o.parameters) for o in recording.optimizers)
        name = variable(recording)
        title = f"the gradients are cleared before {name}.step() can use them"
        says = "zero_grad runs between backward and step in every step, so the optimizer sees no gradients."
        if not whole:
            title = f"the gradients of {listed(modules(recording, names))} are cleared before their optimizer steps"
            says = (
                "zero_grad runs after another optimizer has stepped and before this one does, in every step, so this one "
                "sees no gradients: what it holds never learns."
            )
        return Finding(
            self.name,
            title,
            Severity.ERROR,
            says,
            Location.at(cleared, step=0),
            (Evidence("steps taken on cleared gradients", _times(recording, hit[0]), "≥", self.steps),),
            (_whole_order(recording, name) if whole else _after_all(recording, hit[0], cleared, name),),
            first_step=0,
            places=() if whole else names,
            share=1.0 if whole else len(names) / max(1, trained),
        )


def _times(recording: Recording, optimizer: Optimizer) -> int:
    return recording.counts.get(f"zeroed step {optimizer.index}", 0)


def _whole_order(recording: Recording, name: str) -> Fix:
    backward = first_source(recording, "backward")
    order = (f"{name}.zero_grad()", (backward.text if backward else "") or "loss.backward()", f"{name}.step()")
    return Fix("reorder-step", "Clear first, then backward, then step.", "\n".join(order), Reach.RUN)


def _after_all(recording: Recording, optimizer: Optimizer, cleared: SourceLine | None, name: str) -> Fix:
    kind = f"zeroed step {optimizer.index}"
    step = next((event.detail for event in recording.events if event.kind == kind and event.detail), f"{name}.step()")
    clear = (cleared.text if cleared else "") or f"{name}.zero_grad()"
    text = "Let every optimizer step before any gradient is cleared: the clearing line comes last, outside of a loop over them."
    return Fix("reorder-step", text, f"{step}\n{clear}", Reach.RUN)
