"""The check `frozen-parameter-moves`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.checks.structure.module_flags import freezes_nothing, lines, moved
from netdoctor.checks.training import frozen_norms
from netdoctor.checks.training.optimizer_line import variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Role, Stat


@dataclass(frozen=True)
class FrozenParameterMoves(Check):
    """What was frozen, or was meant to be, goes on changing.

    What it is: `requires_grad = False` stops new gradients; an old `.grad`, or one that was zeroed in place, is still
    there, and weight decay, momentum and Adam's averages move whatever has a gradient. A BatchNorm in training mode
    goes on following its batches. `module.requires_grad = False` freezes nothing at all.
    Why it hurts: what was meant to stay is lost bit by bit, unseen.
    How it is decided: around observed steps, parameters that do not require a gradient were changed by the optimizer
    itself, in at least 2 steps. The outputs of a BatchNorm, frozen after it had trained, changed by 0.2 deviations or
    more for what it was trained on; advice where the task of before does not suffer: its loss on captured batches is
    below 1.5 times that with the old statistics, or 2 % of the gain are not lost. A module's attribute was set to
    False, and an optimizer moved its parameters.
    When it stays silent: EMA and target copies, which the script updates itself; parameters without a gradient, which
    optimizers skip; loops that set all gradients by hand (evolution strategies); modules whose own code reads the
    attribute. Norms that were frozen from the start are the matter of `batchnorm-drift`.
    Fix: drop the old gradients (`set_to_none`), or leave them out of the optimizer; `eval()` for frozen norms;
    `module.requires_grad_(False)`.
    Sources: torch.optim's source (parameters are skipped when `.grad is None`, not when frozen); advice E-T1.
    """

    name = "frozen-parameter-moves"
    explains = frozenset({"batchnorm-drift"})  # statistics of the new data do not fit the batches of before
    needs = frozenset({Stat.FROZEN_UPDATE, Stat.RMS})

    arms = frozenset({"final/evaluation", frozen_norms.KEPT})

    steps: int = 2  # one may be the step in which it was frozen
    drift: float = 0.2  # deviations: twice the noise of a momentum of 0.1 on batches of 16 values
    harm: float = 1.5  # times the loss; the same weights on the same batches, so that any rise is of the statistics
    part: float = 0.02  # of what training had gained: from a loss of 0.001 to one of 0.003 nothing is lost

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for line in lines(recording, value=False):
            if trained := moved(recording, line):
                yield freezes_nothing(self.name, recording, line, trained)
        if norms := frozen_norms.moved(recording, self.drift):
            yield frozen_norms.drifts(self.name, recording, norms, self.drift, self.harm, self.part)
        yield from self._by_optimizer(recording)

    def _by_optimizer(self, recording: Recording) -> Iterator[Finding]:
        moves = dict(self._moves(recording))
        if not moves:
            return
        worst = max(moves, key=lambda name: moves[name][1])
        first = min(step for step, _ in moves.values())
        held = modules(recording, moves)
        optimizer = next((o for o in recording.optimizers if worst in o.parameters), None)
        site = recording.parameters[worst].site(Role.UPDATE)
        source = optimizer.source if optimizer else None
        fix = "Clear the gradients to None once they are frozen, or give the optimizer only what should train."
        code = f"{variable(recording)}.zero_grad(set_to_none=True)  # right after requires_grad_(False)"
        yield Finding(
            self.name,
            f"{listed(held)} {'is' if len(held) == 1 else 'are'} frozen, and the optimizer goes on changing it",
            Severity.WARNING,
            "An old gradient is still there: weight decay, momentum or Adam's averages move the weights without a new one.",
            Location.at(source, held[0], step=first),
            (Evidence("change per step over weight", moves[worst][1], ">", 0.0, "", site, Stat.FROZEN_UPDATE),),
            (Fix("drop-frozen", fix, code, Reach.RUN),),
            first_step=first,
            places=tuple(moves),
            share=len(moves) / max(1, len(recording.parameters)),
        )

    def _moves(self, recording: Recording) -> Iterator[tuple[str, tuple[int, float]]]:
        """Name → (first step, median change relative to the weight) of frozen parameters that were changed."""
        for name in recording.parameters:
            track = recording.of_parameter(name, Stat.FROZEN_UPDATE, Role.UPDATE)
            moved = np.zeros(0, bool) if track is None else track.values > 0
            if track is None or moved.sum() < self.steps:
                continue
            weight = recording.of_parameter(name, Stat.RMS)
            scale = max(float(np.median(weight.values)), 1e-12) if weight is not None else 1.0
            yield name, (int(track.steps[moved][0]), float(np.median(track.values[moved])) / scale)
