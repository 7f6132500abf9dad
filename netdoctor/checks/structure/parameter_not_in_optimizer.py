"""Trainable parameters that get a gradient and belong to no optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.structure.elsewhere import trained_elsewhere
from netdoctor.checks.structure.forgotten import Forgotten, forgotten
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.checks.structure.unfrozen import unfrozen
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Stat
from netdoctor.trend import judge


@dataclass(frozen=True)
class ParameterNotInOptimizer(Check):
    """Trainable parameters get a gradient from the loss, but no optimizer holds them, so they never change.

    What it is: the optimizer was given something else than all that should train: it was made before a layer was
    replaced, unfrozen or made anew, it got the parameters of a part, or a second module was forgotten.
    Why it hurts: these layers stay what they were at initialisation, and the rest trains around them.
    How it is decided: on the captured step. The parameter requires a gradient and the loss's gradient reaches it, no
    optimizer that steps holds it, and others are held by one. Where the step's operations could not be followed: the
    loss's gradient goes to tensors that no optimizer holds, and in no step to any that one does. Later in the run: they
    were frozen while the optimizer stepped, then require a gradient, get new ones, and their weights stay as they are.
    When it stays silent: frozen parameters; parameters of another optimizer; a whole model that serves as a fixed
    function (a pretrained or evaluated one, a copy of another, one through which only an input is optimised).
    A part that was left out of the optimizer after weights were loaded, in a training that learns, is advice: freeze it.
    Fix: build the optimizer after the model is complete, from all of its parameters.
    Sources: TrainCheck's and torchtest2's checks; mmcv#1547 (peers.md d1); advice E-T1.
    """

    name = "parameter-not-in-optimizer"
    needs = frozenset({Stat.RMS})
    explains = NO_LEARNING | NO_SIGNAL | {"symmetric-initialization", "recurrent-gradients", "frozen-by-mistake"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = forgotten(recording)
        other = trained_elsewhere(self.name, recording) if found is None else None
        if other is not None:
            yield other
        if found is None and other is None and (later := unfrozen(self.name, recording)) is not None:
            yield later
        if found is None or found.unregistered:
            return
        count, total = len(found.names), len(found.names) + len(found.trained)
        where = modules(recording, found.names)
        optimizer = recording.optimizers[found.optimizer]
        deliberate = bool(recording.facts.get("pretrained")) and not found.stale and judge(recording).learning
        yield Finding(
            self.name,
            f"{count} of {total} trainable parameters are in no optimizer: {listed(where)}",
            Severity.ADVICE if deliberate else Severity.ERROR,
            f"The loss's gradient reaches them, but {optimizer.type} does not hold them, so they stay as they were at "
            f"the start. {_reason(found)}",
            Location.at(optimizer.source, where[0] if where else None, step=0),
            (Evidence("trainable parameters in no optimizer", count, ">", 0.0),),
            (_fix(found, recording),),
            Certainty.INFERRED if found.whole_model else Certainty.MEASURED,
            first_step=0,
            places=tuple(found.names),
            share=count / total,
        )


def _reason(found: Forgotten) -> str:
    if found.stale:
        return (
            f"The optimizer holds {found.stale} parameters that never get a gradient: it was made before these layers "
            "were replaced."
        )
    if found.whole_model:
        return f"It was built without the parameters of {found.model or 'this model'}."
    return "It was built from other parameters of the model only."


def _fix(found: Forgotten, recording: Recording) -> Fix:
    source = recording.optimizers[found.optimizer].source
    text = source.text if source is not None else ""
    if found.stale:
        return Fix("optimizer-after-model", "Move this line to after the last change of the model.", text, Reach.RUN)
    return Fix("all-parameters", "Give the optimizer these parameters as well.", found.wider(text), Reach.RUN)
