"""The check `sentinel-values`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.data.scale_trial import called, location
from netdoctor.checks.data.symptoms import OF_SCALE
from netdoctor.checks.data.tables import tables
from netdoctor.data import TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Array, Recording

CODES = (-1.0, -9.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0, 99999.0, 32767.0, -32768.0, 65535.0)


@dataclass(frozen=True)
class SentinelValues(Check):
    """A column holds one extreme value again and again, far from all others: a code for "missing".

    What it is: -999, 9999 or the like stands for an unknown value, and is fed to the model as if it were measured.
    Why it hurts: it is the largest number of its column by far: it sets the scale, and each sample with it makes
    activations and gradients as large.
    How it is decided: in a floating-point table, an end of a column's range is shared by at least 3 different rows and
    0.1 % of them, is one of the usual codes (-999, 9999, ...), and the nearest other value lies at least 5 robust
    deviations away. A warning, or advice where training works all the same.
    When it stays silent: any other value, since a rare pixel or count lies as far off; values clipped at a limit (the
    next value is near); columns of few different values; one-hot and binary columns; single outliers.
    Fix: put the column's median in its place, and a column of its own that says "missing".
    Sources: advice A30, E7; scikit-learn's guide to the imputation of missing values (6.4).
    """

    name = "sentinel-values"
    explains = OF_SCALE | {"unnormalised-input", "feature-scales", "saturated-activation", "label-input-mismatch"}

    share: float = 0.001  # of the rows: an accident does not happen so often to the last digit
    most: float = 0.5  # of the rows: what stands in more of them is what is usual
    gap: float = 5.0  # robust deviations: 1 of 3 million normal values lies so far from the middle

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for facts in tables(recording):
            if len(facts.shape) != 2 or not facts.dtype.startswith("float") or not facts.rows:
                continue
            found = np.flatnonzero(self._suspicious(facts))
            if found.size:
                yield self._finding(facts, found.tolist(), harm(recording).state)
                return

    def _suspicious(self, facts: TensorFacts) -> Array:
        columns = facts.columns
        often = (columns.extreme_share >= self.share) & (columns.extreme_share <= self.most)
        coded = np.isin(
            columns.extreme, CODES
        )  # any other value may be a rare pixel or count: isolation alone says nothing
        return np.asarray(often & coded & (columns.extreme_distance >= self.gap), dtype=np.float64)

    def _finding(self, facts: TensorFacts, found: list[int], state: State) -> Finding:
        columns, name = facts.columns, called(facts, "x")
        worst = max(found, key=lambda column: columns.extreme_distance[column])
        value, share, gap = (
            float(a[worst]) for a in (columns.extreme, columns.extreme_share, columns.extreme_distance)
        )
        numbers = [column * facts.stride for column in found]
        code = f"missing = {name} == {value:.6g}\n{name} = torch.where(missing, {columns.median[worst]:.4g}, {name})"
        return Finding(
            self.name,
            f"column {worst * facts.stride} of the input holds {value:g} in {100 * share:.2g} % of the rows: a code for missing?",
            Severity.ADVICE if state is State.WORKS else Severity.WARNING,
            f"No other value lies within {gap:.0f} robust deviations of it. Columns with such a value: {numbers[:16]}.",
            location(facts),
            (Evidence("gap to the next value, in robust deviations", gap, "≥", self.gap),),
            (Fix("impute", "Replace the code by the column's median, and add a column that tells.", code, Reach.RUN),),
            first_step=0,
            places=tuple(f"column {number}" for number in numbers[:16]),
            share=share,
        )
