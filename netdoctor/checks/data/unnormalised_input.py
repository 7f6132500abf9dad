"""The check `unnormalised-input`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data import scale_trial as trial
from netdoctor.checks.data.entrance import Entrance, entrances
from netdoctor.checks.data.harm import Harm, State, harm, of_scale
from netdoctor.checks.data.symptoms import OF_SCALE
from netdoctor.checks.data.tables import tables
from netdoctor.data import TensorFacts
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Reach, Severity
from netdoctor.graph import Value
from netdoctor.recording import Recording, spoken


@dataclass(frozen=True)
class UnnormalisedInput(Check):
    """The model is given numbers far from zero mean and unit scale, and nothing normalises them first.

    What it is: pixels from 0 to 255, or amounts in the thousands, go into a layer that is initialised for a scale of 1.
    Why it hurts: activations and gradients are as many times too large, units die or saturate in the first steps; no
    learning rate suits all weights; a large mean makes the loss a narrow valley.
    How it is decided: what enters the first layer with weights: root mean square above 20 or under 1e-3, or a mean of
    more than 10 standard deviations, and a loss that stays above that of a constant prediction: an error. Proven, where
    the same steps train on a copy with standardised inputs; advice, where that makes no difference. A warning: a slow
    training above a scale of 50, or one at work that learns twice as much in the same steps with standardised inputs.
    When it stays silent: a norm, an embedding or a rescaling comes first; token ids; images in [0, 1]; one-hot or
    binary inputs; a training that works as well as without (advice above 50, unless a norm follows the first layer).
    Fix: subtract the mean and divide by the standard deviation of the training data, the same at test time.
    Sources: LeCun et al., Efficient BackProp, 1998, section 4.3; advice A5, B6, B7, C1.
    """

    name = "unnormalised-input"
    arms = frozenset({"scaling/input", "scaling/both", "scaling/control"})
    explains = OF_SCALE | {"feature-scales", "saturated-activation", "constant-layer", "input-independent-output"}

    large: float = 20.0  # digits of 0..16 (rms 8) train well; what is this large multiplies gradients by 400
    flagrant: float = 50.0  # pixels of 0..255 have 80 to 150: worth a word even where training only crawls
    small: float = 1e-3  # the first layer's bias then drowns the input
    offset: float = 10.0  # standard deviations: the Hessian's condition number is then above 100
    offset_scale: float = 3.0  # root mean square under which such a mean does little

    def judge(self, recording: Recording) -> Iterator[Finding]:
        graph, state = recording.graph, harm(recording)
        for facts in tables(recording) if of_scale(recording) else ():
            doors = [] if graph is None or facts.value is None else entrances(graph, facts.value)
            off = [door for door in doors if self._off(door.value)]
            finding = self._finding(facts, off[0], state, recording) if off and len(off) == len(doors) else None
            if finding is not None:
                yield finding
                return

    def _off(self, value: Value) -> bool:
        rms = math.hypot(value.mean, value.std)
        far = abs(value.mean) > self.offset * value.std > 0 and rms > self.offset_scale
        return rms > self.large or 0 < rms < self.small or far

    def _finding(self, facts: TensorFacts, door: Entrance, state: Harm, recording: Recording) -> Finding | None:
        value, where = door.value, spoken(door.operation.module) or f"the first {door.operation.name}"
        answer, tried = trial.verdict(recording, "input", state)
        if (severity := self._severity(math.hypot(value.mean, value.std), door, state, answer)) is None:
            return None
        name = trial.called(facts, "x")
        code = trial.standardise(facts, name) if door.direct else trial.rescaled(name, value.mean, value.std)
        fix = f"Standardise with the training data's numbers.{trial.beside(tried)}"
        return Finding(
            self.name,
            f"the input is not normalised: values from {value.low:.4g} to {value.high:.4g}, mean {value.mean:.3g}, "
            f"standard deviation {value.std:.3g}",
            severity,
            f"Values reach {where} as they are; initialisations and learning rates are made for a scale of about 1. {state.words}",
            trial.location(facts, door.operation.module, door.operation.name),
            (self._evidence(value),),
            (Fix("standardise-input", fix, code, Reach.RUN, tried),),
            Certainty.PROVEN if answer is trial.Says.CURED else Certainty.MEASURED,
            first_step=0,
            share=1.0,
        )

    def _evidence(self, value: Value) -> Evidence:
        rms = math.hypot(value.mean, value.std)
        if self.small <= rms <= self.large:
            return Evidence("mean over standard deviation", abs(value.mean) / value.std, ">", self.offset)
        sign, limit = (">", self.large) if rms > self.large else ("<", self.small)
        return Evidence("root mean square of the input", rms, sign, limit)

    def _severity(self, rms: float, door: Entrance, state: Harm, says: trial.Says) -> Severity | None:
        flagrant = rms > self.flagrant and not door.normed
        if says is trial.Says.NO_EFFECT:
            return Severity.ADVICE if flagrant else None
        grave = says is trial.Says.CURED or state.state is State.HURT
        if state.state is not State.WORKS:
            return (Severity.ERROR if grave else Severity.WARNING) if grave or flagrant else None
        slower = says is trial.Says.FASTER and state.trend.kind != "converged"
        return Severity.WARNING if slower else Severity.ADVICE if grave or flagrant else None
