"""The check `feature-scales`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data import scale_trial as trial
from netdoctor.checks.data.entrance import entrances
from netdoctor.checks.data.harm import Harm, State, harm, of_scale
from netdoctor.checks.data.symptoms import OF_SCALE
from netdoctor.checks.data.tables import tables
from netdoctor.data import TensorFacts
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Array, Recording


@dataclass(frozen=True)
class FeatureScales(Check):
    """The columns of a table differ in scale by a factor of 1000 or more.

    What it is: rates of a few percent stand beside incomes, and both go as they are into the first layer.
    Why it hurts: the loss is a narrow valley, along which the learning rate that the large columns allow moves the
    weights of the small ones by next to nothing: those features are not learned.
    How it is decided: the root mean squares or the standard deviations of the columns of a two-dimensional
    floating-point input, over the sampled steps, that enter the first layer with weights as they are; and training does
    not work, is slow, or a copy with standardised columns leaves a fifth of its loss in as many steps. Where that copy
    trains and the script as it is does not, it is proven.
    When it stays silent: training works; one-hot and sparse counts (columns with 90 % of zeros do not count); a norm
    or a rescaling first; a trial without effect.
    Fix: standardise each column with the training data's mean and standard deviation.
    Sources: LeCun et al., Efficient BackProp, 1998, section 4.3; advice A5, A30.
    """

    name = "feature-scales"
    arms = frozenset({"scaling/input", "scaling/both", "scaling/control"})
    explains = OF_SCALE | {"saturated-activation", "constant-layer", "input-independent-output"}

    ratio: float = 1000.0  # the condition number is its square: a million
    sparse: float = 0.9  # of zeros: the scale of such a column is that of its few entries

    def judge(self, recording: Recording) -> Iterator[Finding]:
        state = harm(recording)
        suffers = state.state in {State.HURT, State.SLOW}
        suffers = suffers or trial.verdict(recording, "input", state)[0] in {trial.Says.CURED, trial.Says.FASTER}
        if not suffers or not of_scale(recording) or recording.graph is None:
            return
        for facts in tables(recording):
            if len(facts.shape) != 2 or not facts.dtype.startswith("float") or facts.value is None or not facts.rows:
                continue
            doors = entrances(recording.graph, facts.value)
            scales = self._scales(facts)
            if doors and all(door.direct and not door.normed for door in doors) and _ratio(scales) >= self.ratio:
                yield from self._found(facts, scales, state, recording)

    def _scales(self, facts: TensorFacts) -> Array:
        """Root mean square or standard deviation per column, whichever differ more; NaN where it is constant or sparse."""
        columns = facts.columns
        kept = (columns.std > 0) & (columns.zeros < self.sparse)
        both = [np.where(kept, found, np.nan) for found in (np.hypot(columns.mean, columns.std), columns.std)]
        return max(both, key=_ratio)

    def _found(self, facts: TensorFacts, scales: Array, state: Harm, recording: Recording) -> Iterator[Finding]:
        answer, tried = trial.verdict(recording, "input", state)
        if answer is trial.Says.NO_EFFECT:
            return
        large, small = int(np.nanargmax(scales)), int(np.nanargmin(scales))
        title = (
            f"features differ in scale by {_ratio(scales):.0e}: column {large * facts.stride} is of {scales[large]:.3g}"
        )
        code = trial.standardise(facts, trial.called(facts, "x"))
        yield Finding(
            self.name,
            f"{title}, column {small * facts.stride} of {scales[small]:.2g}",
            Severity.WARNING,
            f"One learning rate cannot suit both. {state.words}",
            trial.location(facts),
            (Evidence("largest over smallest scale of a column", _ratio(scales), "≥", self.ratio),),
            (Fix("standardise-input", "Standardise each column.", code, Reach.RUN, tried),),
            Certainty.PROVEN if answer is trial.Says.CURED else Certainty.MEASURED,
            0,
            share=1.0,
        )


def _ratio(scales: Array) -> float:
    known = scales[np.isfinite(scales)]
    return float(known.max() / known.min()) if known.size > 1 and known.min() > 0 else 1.0
