"""The check `constant-feature`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.pinned import pinned
from netdoctor.checks.data.scale_trial import location
from netdoctor.checks.data.tables import tables
from netdoctor.data import TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Array, Recording

ONES = 1.0  # a column of ones makes a bias


@dataclass(frozen=True)
class ConstantFeature(Check):
    """A column or channel of the input has the same value in every sample seen.

    What it is: a sensor that hangs, a column that was filled with one value or overwritten, a channel lost in loading.
    Why it hurts: it tells the model nothing, and what it should have told is missing; where it does vary in other data,
    the model meets values that it never saw.
    How it is decided: over at least 64 sampled rows, a column of a floating-point table, a feature of sequences or a
    channel of images has one value only, while at least half of the others vary. A warning for a channel, and for any
    value but 1 among columns that are dense (nine in ten of the others are rarely 0 and not mostly one value); else
    advice, as in pixels or counts, some of which are rarely anything but 0, and where columns are places of a function
    that is held there (a boundary value, the start of a path): from there on the others spread more and more.
    When it stays silent: single columns; whole numbers and one-hot tables; columns that are constant with most others.
    Advice as well where a step asks the model several times (an agent, move after move): only its first input is seen;
    and with several optimizers, where a model may be given what another one made (a probe on features).
    Fix: drop it, or mend where it comes from.
    Sources: Breck et al., Data Validation for Machine Learning, 2019; scikit-learn's VarianceThreshold; advice A30.
    """

    name = "constant-feature"

    rows: int = 64  # different values of a rare column would be met in as many, most of the time
    others: float = 0.5  # of the columns vary: else the data is sparse or padded
    dense: float = 0.9  # of the other columns: in a table of measurements no value comes again and again

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for facts in tables(recording):
            if facts.rows < self.rows or facts.integral or not facts.dtype.startswith(("float", "bfloat")):
                continue
            constant = facts.columns.low == facts.columns.high
            if constant.size < 2 or not constant.any() or (~constant).mean() < self.others:
                continue
            if len(set(facts.batches)) > 1 or facts.shape[0] >= self.rows:
                yield self._finding(facts, constant, _once(recording) and len(recording.optimizers) < 2)
                return

    def _wrong(self, facts: TensorFacts, constant: Array) -> list[int]:
        """The constant columns that are not explained by sparseness."""
        columns = facts.columns
        if facts.axis == "channel":
            return list(map(int, np.flatnonzero(constant)))
        other = ~constant.astype(bool)
        dense = float(np.mean((columns.spread > 0)[other] & (columns.zeros[other] < 1 - self.dense))) >= self.dense
        odd = constant.astype(bool) & (columns.low != ONES) & np.logical_not(pinned(constant, columns.std))
        return list(map(int, np.flatnonzero(odd))) if dense else []

    def _finding(self, facts: TensorFacts, constant: Array, given: bool) -> Finding:
        wrong = self._wrong(facts, constant) if given else []
        found = wrong or list(map(int, np.flatnonzero(constant)))
        numbers = [index * facts.stride for index in found]
        values = sorted({float(facts.columns.low[index]) for index in found})
        shown = f"{facts.axis} {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} {facts.axis}s"
        value = f"always {values[0]:g}" if len(values) == 1 else "always the same"
        kept = f"keep = [{', '.join(map(str, sorted(set(range(facts.columns.low.size)) - set(numbers))[:12]))}]"
        small = facts.columns.low.size <= 12 and facts.axis == "column"
        return Finding(
            self.name,
            f"{shown} of the input {'is' if len(numbers) == 1 else 'are'} {value}",
            Severity.WARNING if wrong else Severity.ADVICE,
            f"{facts.rows} rows of {len(facts.steps)} batches were looked at; the other {facts.axis}s vary.",
            location(facts),
            (Evidence("different values", 1, "=", 1),),
            (Fix("drop-feature", "Drop it, or mend where it comes from.", kept if small else "", Reach.RUN),),
            first_step=0,
            places=tuple(f"{facts.axis} {number}" for number in numbers[:16]),
            share=float(len(found) / constant.size),
        )


def _once(recording: Recording) -> bool:
    """Whether a step runs the first layer only once."""
    first, graph = next(iter(recording.layers), None), recording.graph
    if first is None or graph is None:
        return True
    return sum((o.module, o.name) == (first.path, first.function) for o in graph.operations) <= 1
