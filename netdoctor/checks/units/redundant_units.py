"""The check `redundant-units`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class RedundantUnits(Check):
    """A wide layer whose units nearly all say the same: its activations use a few directions only.

    What it is: more units than the data and the task ask for, or units that collapsed onto each other.
    Why it hurts: time and memory for nothing; of a collapse it is a first sign.
    How it is decided: on a copy of the trained model, over the captured batches: the effective rank of a dense layer's
    output (exp of the entropy of its normalised singular values) is under a twentieth of its units, and of the effective
    rank of what comes in: a layer can make no new directions, so few of them behind few inputs say nothing of the layer.
    When it stays silent: layers of under 64 units; fewer than 4 rows per unit; layers that use more. Advice only: wide
    layers train more easily than narrow ones, even where little of them is used in the end.
    Fix: about twice as many units as the effective rank.
    Sources: Roy and Vetterli, The Effective Rank, 2007; advice A18, B9.
    """

    name = "redundant-units"
    arms = frozenset({"redundancy/rank"})

    share: float = 0.05  # of the units: trained layers use a tenth to a half (measured on the healthy programs)

    def judge(self, recording: Recording) -> Iterator[Finding]:
        arm = recording.arms.get("redundancy/rank")
        curves = {} if arm is None or arm.failure else arm.curves
        found = {path: (float(c[0]), float(c[1])) for path, c in curves.items() if c[0] < self.share * min(c[1:])}
        if not found:
            return
        path = min(found, key=lambda name: found[name][0] / found[name][1])
        rank, units = found[path]
        layer = recording.layer_at(path)
        yield Finding(
            self.name,
            f"{path}: {units:.0f} units that use {rank:.2g} directions",
            Severity.ADVICE,
            f"Layers with so little in so many units: {', '.join(found)}.",
            Location.at(layer.source if layer else None, path),
            (Evidence("effective rank over units", 100 * rank / units, "<", 100 * self.share, "%"),),
            (Fix("fewer-units", "Fewer units will do.", f"nn.Linear(..., {max(4, round(2 * rank))})", Reach.MODEL),),
            places=tuple(found),
            share=1 - rank / units,
        )
