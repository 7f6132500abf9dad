"""The check `input-outliers`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.entrance import entrances
from netdoctor.checks.data.scale_trial import called, location
from netdoctor.checks.data.tables import tables
from netdoctor.data import TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Array, Recording


@dataclass(frozen=True)
class InputOutliers(Check):
    """A column of the input holds values that lie very far from all others of that column.

    What it is: typing errors, wrong units, overflows of a sensor, or amounts and counts with a heavy tail.
    Why it hurts: the one sample makes the largest activations and gradients of its batch; and where the columns were
    standardised with it, all other values were squeezed together.
    How it is decided: over at least 200 sampled rows of floating-point columns that are not mostly one value: the range
    reaches 100 robust deviations (1.4826 median |x - median|) or more from the median.
    When it stays silent: columns that are as good as constant; whole numbers and sparse columns; images; fewer rows;
    normalised before the first layer.
    Advice only: what is an outlier is for who knows the data to say.
    Fix: clip the column, or take its logarithm.
    Sources: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993 (3.5 robust deviations; 100 leaves heavy
    tails alone); advice E3.
    """

    name = "input-outliers"

    rows: int = 200  # the median deviation is then known to a tenth
    distance: float = 100.0  # robust deviations: log-normal amounts reach 50
    varies: float = 1e-4  # of the median: where the rest differs by less, clipping leaves a constant

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for facts in tables(recording):
            if (
                facts.rows < self.rows
                or facts.axis == "channel"
                or facts.integral
                or not facts.dtype.startswith("float")
            ):
                continue
            distance = _distances(facts, self.varies)
            if not (distance >= self.distance).any() or _normed(recording, facts):
                continue
            yield self._finding(facts, distance)
            return

    def _finding(self, facts: TensorFacts, distance: Array) -> Finding:
        worst, columns = int(distance.argmax()), facts.columns
        high = columns.high[worst] - columns.median[worst] >= columns.median[worst] - columns.low[worst]
        value = float((columns.high if high else columns.low)[worst])
        found = [int(index) * facts.stride for index in np.flatnonzero(distance >= self.distance)]
        low, top = (columns.median[worst] + sign * 10 * columns.spread[worst] for sign in (-1, 1))
        name = called(facts, "x")
        return Finding(
            self.name,
            f"column {worst * facts.stride} of the input reaches {value:.4g}, {distance[worst]:.0f} robust deviations out",
            Severity.ADVICE,
            f"Its median is {columns.median[worst]:.4g}, its robust deviation {columns.spread[worst]:.4g}. Columns with such "
            f"values: {found[:16]}.",
            location(facts),
            (Evidence("distance from the median, in robust deviations", float(distance[worst]), "≥", self.distance),),
            (Fix("clip-input", "Clip it, or mend it.", f"{name} = {name}.clamp({low:.4g}, {top:.4g})", Reach.RUN),),
            first_step=0,
            places=tuple(f"column {number}" for number in found[:16]),
            share=len(found) / distance.size,
        )


def _distances(facts: TensorFacts, varies: float) -> Array:
    """Per column, how far its range reaches from its median, in robust deviations; 0 where it is mostly one value."""
    columns = facts.columns
    reach = np.maximum(columns.high - columns.median, columns.median - columns.low)
    kept = (columns.spread > varies * np.abs(columns.median)) & (columns.zeros < 0.5)
    return np.asarray(np.divide(reach, columns.spread, out=np.zeros_like(reach), where=kept))


def _normed(recording: Recording, facts: TensorFacts) -> bool:
    """Whether nothing reads the tensor as it is."""
    if recording.graph is None or facts.value is None:
        return False
    return all(door.normed or not door.direct for door in entrances(recording.graph, facts.value))
