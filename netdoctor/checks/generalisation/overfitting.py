"""The loss on held-out data rises while the training loss falls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.generalisation.curves import Curve, curves, rising
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Series

CODE = """if val_loss < best:
    best, best_state = val_loss, copy.deepcopy(model.state_dict())
# after training: model.load_state_dict(best_state)"""


@dataclass(frozen=True)
class Overfitting(Check):
    """The loss on held-out data rises from its best while the training loss goes on falling.

    What it is: from some step on the model learns what is particular to the training samples.
    Why it hurts: every further step makes it worse on what it is meant for.
    How it is decided: the losses of the script's own evaluations (passes without training whose loss is the training's,
    or `doctor.log(val_loss=...)`), at least 8 of them. After the best one they rise by a significant trend
    (Mann-Kendall, one-sided 1 %), the last of them lie at least 20 % and a tenth of what had been gained above the
    best, and the training loss is at least 5 % lower than it was at the best.
    When it stays silent: fewer evaluations; noise around a plateau; training losses that rise as well (divergence);
    evaluation of the training set; GAN, RL, moving targets. Advice where the script loads other weights after its last
    step, as early stopping does.
    Fix: keep the weights of the best step; then weight decay, dropout, augmentation, more data, a smaller model.
    Sources: Prechelt, Early Stopping - But When?, 1998; Mann 1945, Kendall 1975; advice A1, A17, A40, C5.
    """

    name = "overfitting"

    least: int = 8  # evaluations: Mann-Kendall's normal approximation holds from 8 values on
    rise: float = 0.2  # of the best: the loss of confident mistakes moves by less while nothing is lost
    gained: float = 0.1  # of the fall from the first evaluation to the best: a rise from 0.02 to 0.03 is none
    fall: float = 0.05  # of the training loss since the best: else nothing more is learned, by heart or otherwise

    def judge(self, recording: Recording) -> Iterator[Finding]:
        training = recording.loss
        if training is None or recording.facts.get("moving_target") or recording.facts.get("several_optimizers"):
            return
        for curve in curves(recording):
            if len(curve.losses) < self.least or not np.isfinite(curve.losses).all():
                continue
            turn = rising(curve.losses)
            if turn is None:
                continue
            over = (turn.end - turn.level) / max(abs(turn.level), 1e-12)
            enough = over >= self.rise and turn.end - turn.level >= self.gained * (turn.start - turn.level)
            fallen = _fallen(training, int(curve.steps[turn.best]))
            if enough and fallen >= self.fall:
                yield self._finding(recording, curve, turn.best, turn.level, turn.end, over)
                return

    def _finding(self, recording: Recording, curve: Curve, best: int, level: float, end: float, over: float) -> Finding:
        step, back = int(curve.steps[best]), _put_back(recording)
        return Finding(
            self.name,
            f"overfitting: the held-out loss was best at step {step} and is {100 * over:.0f} % above that at the end",
            Severity.ADVICE if back else Severity.WARNING,
            f"It rises from {level:.4g} to {end:.4g} over {len(curve.losses) - best - 1} evaluations, while the training "
            f"loss goes on falling.{' After the last step other weights were loaded.' if back else ''}",
            Location.at(curve.source, step=step),
            (Evidence("held-out loss above its best", 100 * over, "≥", 100 * self.rise, "%"),),
            (
                Fix("early-stopping", f"Keep the weights of the best evaluation (step {step}).", CODE, Reach.RUN),
                Fix("weight-decay", "Regularise: weight decay, dropout, augmentation, or a smaller model."),
            ),
            first_step=step,
            share=1.0,
        )


def _put_back(recording: Recording) -> bool:
    """Whether the script loaded a state that the model did not hold after its last step. Of averaged weights that are swapped in
    and out for an evaluation there are two such loads, and the model ends as it was."""
    return sum(event.kind == "state put back" and event.step >= recording.steps for event in recording.events) == 1


def _fallen(training: Series, step: int) -> float:
    """The share of its level around a step that the training loss lost by its end."""
    size = max(3, len(training.values) // 10)
    at = int(np.searchsorted(training.steps, step))
    around = float(np.median(training.values[max(0, at - size) : at + size]))
    return (around - float(np.median(training.values[-size:]))) / max(abs(around), 1e-12)
