"""Units that start identical and get identical gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, stuck_zeros
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Kind, Layer, Parameter, Recording, Role, Stat

# The gates of one cell get different gradients: as many distinct rows are symmetric still.
_GATES = {"LSTM": 4, "GRU": 3}


@dataclass(frozen=True)
class SymmetricInitialization(Check):
    """All units of a layer start with the same weights and get the same gradient, so they stay one unit.

    What it is: constant (or zero) weights in a hidden layer: nothing tells its units apart.
    Why it hurts: the layer is as good as one unit wide; only rounding, noise or dropout slowly breaks the tie.
    How it is decided: at step 0 all rows of the weight (of an embedding its columns) are equal, and those of its first
    gradient that is not zero are nearly all equal too (under half are distinct: rounding makes a few). Zeros that get no
    gradient count too; so do two matrices of one module, in any part of the run, that stay zero with gradients of zero.
    When it stays silent: zero biases; a zero-initialised last layer, residual end or LoRA-B, whose rows get different
    gradients; norms; single units; frozen weights; pretrained models.
    Fix: a random initialisation.
    Sources: Goodfellow et al. 2016, section 8.4 (breaking symmetry).
    """

    name = "symmetric-initialization"
    needs = frozenset({Stat.RMS, Stat.DISTINCT_ROWS})
    explains = c.OF_SYMMETRY

    distinct: float = 0.5  # share of distinct gradient rows; measured 0.02 to 0.2 in constant hidden layers, 1 in heads
    samples: int = 3  # sampled steps without gradient before zeros count: a zero head delays it by one step

    def judge(self, recording: Recording) -> Iterator[Finding]:
        together = list(stuck_zeros.findings(self.name, recording, self.samples))
        yield from together
        if together or recording.facts.get("pretrained"):
            return
        layers = {x.weight: x for x in recording.of_kind(Kind.LINEAR, Kind.RECURRENT, Kind.EMBEDDING) if x.weight}
        found = [x for x in layers.values() if self._symmetric(recording, recording.parameters.get(x.weight))]
        if found:
            yield self._finding(recording, found, len(found) / len(layers))

    def _symmetric(self, recording: Recording, parameter: Parameter | None) -> bool:
        if parameter is None or not parameter.requires_grad or len(parameter.shape) < 2:
            return False
        rows, units = recording.of_parameter(parameter.name, Stat.DISTINCT_ROWS), parameter.shape[_axis(parameter)]
        gates = _GATES.get(parameter.module_type, 1)
        if rows is None or rows.steps[0] != 0 or units <= gates or rows.values[0] * units > gates + 0.5:
            return False
        return self._same_gradients(recording, parameter)

    def _same_gradients(self, recording: Recording, parameter: Parameter) -> bool:
        distinct = recording.of_parameter(parameter.name, Stat.DISTINCT_ROWS, Role.WEIGHT_GRADIENT)
        size = recording.of_parameter(parameter.name, Stat.RMS, Role.WEIGHT_GRADIENT)
        weight = recording.of_parameter(parameter.name, Stat.RMS)
        if distinct is None or size is None:
            return False
        first = np.flatnonzero(size.values[: distinct.values.size] > 0)
        if first.size == 0:
            return size.values.size >= self.samples and weight is not None and not weight.values.any()
        return bool(distinct.values[first[0]] < self.distinct)

    def _finding(self, recording: Recording, layers: list[Layer], share: float) -> Finding:
        first, parameter = layers[0], recording.parameters[layers[0].weight]
        units, site = parameter.shape[_axis(parameter)], parameter.site(Role.WEIGHT)
        rows = "columns" if _axis(parameter) else "rows"
        limit, measured = _GATES.get(parameter.module_type, 1) / units, recording.tracks[site, Stat.DISTINCT_ROWS].first
        more = f" (and those of {len(layers) - 1} more layer{'s' * (len(layers) > 2)})" if len(layers) > 1 else ""
        return Finding(
            check=self.name,
            title=f"all {units} units of {first.spoken} start identical{more}",
            severity=Severity.ERROR,
            explanation=f"The {rows} of {first.weight} are equal at step 0 and so are their gradients: the {units} units "
            "compute one and the same thing. Only random weights tell units apart.",
            location=Location.at(first.source, first.path, step=0),
            evidence=(
                Evidence(
                    f"share of distinct {rows} of {first.weight}", measured, "≤", limit, "", site, Stat.DISTINCT_ROWS
                ),
            ),
            fixes=(initialisation.fix(recording, layers),),
            first_step=0,
            places=tuple(layer.name for layer in layers),
            share=share,
        )


def _axis(parameter: Parameter) -> int:
    """Along which axis of a weight its units lie: the features of a table of embeddings are its columns."""
    return int(parameter.module_type in ("Embedding", "EmbeddingBag"))
