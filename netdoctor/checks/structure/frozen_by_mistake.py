"""Almost everything is frozen, and what is left cannot learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.signal import outcome
from netdoctor.checks.signal.initialisation import expression
from netdoctor.checks.structure.gradients import listed
from netdoctor.checks.structure.module_flags import lines, unfreezes_nothing, weights
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording
from netdoctor.trend import judge


@dataclass(frozen=True)
class FrozenByMistake(Check):
    """Nearly all weights are frozen, they were not loaded from anywhere, and the loss does not fall.

    What it is: `requires_grad = False` on more than was meant: on all parameters instead of the backbone's, with the
    wrong name in a condition, or in place of nothing, as no pretrained weights were loaded.
    Why it hurts: a random network that does not change has to be made up for by the few parameters that do.
    How it is decided: at least 90 % of the weights (by count) of a model with a trained parameter do not require a
    gradient, no weights were loaded before the first step, and the loss does not fall. Or a frozen weight matrix is all
    zero (an adapter, a residual end): what it is multiplied with gives nothing, and nothing can change that. Or
    `module.requires_grad = True` was set on a module with frozen parameters, which does nothing, and they stay frozen.
    When it stays silent: fine-tuning of loaded weights; a training that learns; a second model that serves as a fixed
    function (a teacher, a perceptual loss); modules whose own code reads the attribute.
    Fix: set requires_grad for what should train, before the optimizer is made; `module.requires_grad_(True)`.
    Sources: 37 reasons why your neural network is not working (frozen layers); torch.nn.Module.requires_grad_; E-T1.
    """

    name = "frozen-by-mistake"
    explains = NO_LEARNING | NO_SIGNAL

    share: float = 0.9  # of the weights: less than that is a usual split of backbone and head

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if zeros := [name for name in str(recording.facts.get("frozen_zeros", "")).split(",") if name]:
            yield self._of_zeros(recording, zeros)
        if told := lines(recording, value=True):
            yield from (unfreezes_nothing(self.name, recording, line) for line in told)
            return  # that is why so much is frozen
        if recording.facts.get("pretrained") or not outcome.hurt(judge(recording)):
            return
        alive = {p.model for p in recording.parameters.values() if p.requires_grad and p.module_type}
        own = [p for p in recording.parameters.values() if p.model in alive and p.module_type]
        frozen = [p for p in own if not p.requires_grad]
        share = weights(frozen) / max(1, weights(own))
        if share < self.share or not any(len(p.shape) > 1 for p in frozen):
            return
        free = [p.name for p in own if p.requires_grad]
        optimizer = next((o for o in recording.optimizers if o.steps), None)
        yield Finding(
            self.name,
            f"{100 * share:.0f} % of the weights are frozen and the loss does not fall",
            Severity.WARNING,
            f"Only {listed(free)} can change. No weights were loaded before, so what is frozen is random. "
            f"{outcome.words(judge(recording))}",
            Location.at(optimizer.source if optimizer else None, frozen[0].module, step=0),
            (Evidence("frozen weights", 100 * share, "≥", 100 * self.share, "%"),),
            (
                Fix(
                    "unfreeze",
                    "Unfreeze the model before the optimizer is made.",
                    "for parameter in model.parameters():\n    parameter.requires_grad_(True)",
                    Reach.RUN,
                ),
            ),
            first_step=0,
            places=tuple(p.name for p in frozen),
            share=share,
        )

    def _of_zeros(self, recording: Recording, names: list[str]) -> Finding:
        module = recording.parameters[names[0]].module if names[0] in recording.parameters else ""
        return Finding(
            self.name,
            f"{listed(names)} {'is' if len(names) == 1 else 'are'} frozen, and all zero",
            Severity.WARNING,
            "What is multiplied with zeros gives nothing, and without a gradient that stays so: this part does not exist.",
            Location.at(next((x.source for x in recording.layers if x.path == module), None), module or None),
            (Evidence("frozen weight matrices that are all zero", len(names), ">", 0.0),),
            (
                Fix(
                    "unfreeze",
                    "Let them train: set requires_grad before the optimizer is made.",
                    "\n".join(f"{expression(recording, name)}.requires_grad_(True)" for name in names[:8]),
                    Reach.RUN,
                ),
            ),
            first_step=max(0, recording.steps - 1),  # what is known is how it ended
            places=tuple(names),
        )
