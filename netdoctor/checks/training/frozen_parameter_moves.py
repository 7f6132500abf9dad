"""The check `frozen-parameter-moves`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.checks.training.optimizer_line import variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Role, Stat


@dataclass(frozen=True)
class FrozenParameterMoves(Check):
    """The optimizer goes on changing parameters that were frozen.

    What it is: `requires_grad = False` stops new gradients; an old `.grad`, or one that was zeroed in place, is still
    there, and weight decay, momentum and Adam's averages move whatever has a gradient.
    Why it hurts: what was meant to stay is lost bit by bit, unseen.
    How it is decided: around observed steps, parameters that do not require a gradient were changed by the optimizer
    itself, in at least 2 steps.
    When it stays silent: EMA and target copies, which the script updates itself; parameters without a gradient, which
    optimizers skip; loops that set all gradients by hand (evolution strategies). Running statistics of frozen norms are
    the matter of `batchnorm-drift`.
    Fix: drop the old gradients (`set_to_none`), or leave them out of the optimizer.
    Sources: torch.optim's source (parameters are skipped when `.grad is None`, not when frozen); advice E-T1.
    """

    name = "frozen-parameter-moves"
    needs = frozenset({Stat.FROZEN_UPDATE, Stat.RMS})

    steps: int = 2  # one may be the step in which it was frozen

    def judge(self, recording: Recording) -> Iterator[Finding]:
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
