"""Treatment of nets of straight pieces whose second derivative is asked for: smooth activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from netdoctor.checks.structure.second_derivatives import flat_derivatives
from netdoctor.experiments.curvature import BATCHES, SMOOTH, Smooth, derivatives_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment

_HALF = 50.0  # percent: a call of grad that gives zeros alone, or one that does not


def smooth_activation(smooth: Callable[[Tensor], Tensor], case: Case) -> Treatment | None:
    """A smooth function in the place of all activations of straight pieces."""
    backwards = [iteration.backwards[0] for iteration in case.step.iterations[:BATCHES]]

    def apply(bench: Bench) -> None:
        bench.stack.enter_context(Smooth(smooth))

    def zeros(bench: Bench) -> float:
        found = derivatives_of(bench.sandbox.copies, backwards)
        return max((100 * zeros / count for zeros, count, _ in found if count), default=0.0)

    # Of a residual the losses tell; a penalty that was always 0 is one from now on, and by right the loss rises.
    joined = any(flat.joined for flat in flat_derivatives(case.recording))
    name = "entries of the second derivative that are 0"
    return Treatment(apply, measure=Measure(name, zeros, _HALF, "%", joined, joined))


TREATMENTS: dict[str, Maker] = {f"smooth-{name}": partial(smooth_activation, smooth) for name, smooth in SMOOTH.items()}
