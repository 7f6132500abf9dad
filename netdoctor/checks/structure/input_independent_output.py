"""A model whose output does not depend on what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Array, Recording, SourceLine

GIVEN, BLANKED = "inputs/given", "inputs/blanked"


@dataclass(frozen=True)
class InputIndependentOutput(Check):
    """The model's output is the same whatever it is given.

    What it is: a result that was kept from the first call, the wrong variable, zeros that were to be filled, an integer
    division, a signal that died on its way.
    Why it hurts: nothing can be learned but the average target.
    How it is decided: by experiment. On a copy of the trained model everything that varies in the captured batches is
    shuffled over the samples, and the loss stays the same to the last bit; or the samples of a tiny batch are exchanged
    and the trained copy's outputs move by less than 1e-6. Beside it the same steps are run with every input replaced by
    the average one.
    When it stays silent: any part of the input is read; inputs that do not vary; runs without experiments; training
    that learns in spite of it.
    Fix: follow the input through forward, from its first line.
    Sources: Karpathy, A Recipe for Training Neural Networks, 2019 (the input-independent baseline); torchtest.
    """

    name = "input-independent-output"
    arms = frozenset({"overfit/own", GIVEN, BLANKED})
    explains = frozenset(
        {"loss-not-decreasing", "cannot-overfit-tiny-batch", "label-input-mismatch", "ignored-input", "no-gradient"}
    )

    gap: float = 0.05  # of the loss: what the true inputs must save over blanked ones; minibatch noise is about that

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        usage = [arm for name, arm in recording.arms.items() if name.startswith("usage/")]
        own = recording.arms.get("overfit/own")
        if not usage and own is None:
            yield Abstention(self.name, "experiments were off: the inputs were not shuffled")
            return
        read = not usage or not all(arm.facts.get("whole") is True for arm in usage)
        ignored = own is not None and own.facts.get("input_ignored") is True
        if (read and not ignored) or harm(recording).state is State.WORKS:
            return
        arms = [recording.arms.get(name) for name in (GIVEN, BLANKED)]
        levels = [_level(arm.losses) for arm in arms if arm is not None and arm.losses.size]
        if len(levels) == 2 and levels[1] - levels[0] > self.gap * abs(levels[1]):
            return  # the copy learns from its inputs all the same
        yield self._finding(recording, levels)

    def _finding(self, recording: Recording, levels: list[float]) -> Finding:
        beside = ""
        if len(levels) == 2:
            beside = f" With averages in place of the inputs a copy ends at {levels[1]:.4g}, with the inputs at {levels[0]:.4g}."
        facts = recording.inputs[0] if recording.inputs else None
        at = SourceLine(facts.file, facts.line, facts.text) if facts is not None and facts.file else None
        return Finding(
            self.name,
            "the output does not depend on the input: shuffled over the samples, it stays the same",
            Severity.ERROR,
            f"Whatever the model is given, it predicts the same. {harm(recording).words}{beside}",
            Location.at(at, step=0),
            (Evidence("change of the output with other inputs", 0.0, "≤", 1e-6),),
            (Fix("use-the-input", "Follow the input through forward: where is it last used?", "", Reach.MODEL),),
            Certainty.PROVEN,
            first_step=0,
            share=1.0,
        )


def _level(losses: Array) -> float:
    return float(np.median(losses[-max(2, losses.size // 5) :]))
