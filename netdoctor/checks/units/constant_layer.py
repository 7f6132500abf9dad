"""The check `constant-layer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.signal import outcome
from netdoctor.checks.units import narrow_norms
from netdoctor.checks.units.window import STALLED, before, finite_until
from netdoctor.finding import Abstention, Evidence, Finding, Location, Severity
from netdoctor.recording import Kind, Layer, Recording, Role, Stat, shared
from netdoctor.trend import judge


@dataclass(frozen=True)
class ConstantLayer(Check):
    """A layer whose output is the same for every sample.

    What it is: from this layer on nothing of the input is left; what comes after is a constant with a bias.

    Why it hurts: the model can only learn the mean of the targets.

    How it is decided: in the last sampled steps (at least 4) the standard deviation of the layer's output over the
    batch is under 1e-6 of its scale, the layer before it still varies, and every layer after it is constant as well.

    When it stays silent: branches that do not depend on the input (positional tables, embeddings of fixed indices,
    learned queries), as the layers after them vary; a constant batch or a batch of one; where the loss falls well;
    outputs of a zero-initialised layer at the start.

    Fix: look upstream of the layer: dead or saturated units, weights or a bias that swamp the signal, a reduction over
    the wrong dimension. A LayerNorm over a single number gives its bias for every sample: leave it out.

    Sources: advice B-1; float32 resolves 1.2e-7, so that a variation under 1e-6 is next to rounding.
    """

    limit: float = 1e-6  # of the scale: eight times what float32 resolves (2**-23)
    min_steps: int = 4  # sampled steps: all of them must be constant

    name: ClassVar[str] = "constant-layer"
    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.BATCH_STD, Stat.RMS})
    explains: ClassVar[frozenset[str]] = STALLED - {"vanishing-activations"}

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        """One finding per model, about the first constant layer."""
        if outcome.learns(trend := judge(recording)):
            return
        end = finite_until(recording, trend)
        spreads = [
            (layer, spread) for layer in recording.layers if (spread := self._spread(recording, layer, end)) is not None
        ]
        if recording.of_kind(Kind.LINEAR) and not spreads:
            yield Abstention(self.name, f"fewer than {self.min_steps} sampled steps with more than one sample")
        for model in dict.fromkeys(layer.model for layer, _ in spreads):
            chain = [(layer, spread) for layer, spread in spreads if layer.model == model]
            index = next((i for i in reversed(range(len(chain))) if chain[i][1] >= self.limit), -1) + 1
            if not 0 < index < len(chain):
                continue  # nothing varies (a constant batch), or the output does
            (layer, spread), words = chain[index], outcome.words(trend)
            yield Finding(
                self.name,
                f"{layer.spoken} gives the same output for every sample",
                Severity.WARNING,
                f"Its output varies over the batch by {spread:.2g} of its scale, that of {chain[index - 1][0].name} by "
                f"{chain[index - 1][1]:.2g}. The {len(chain) - index} layers from it on are constant. " + words,
                Location.at(layer.source, layer.path or None),
                (
                    Evidence(
                        "variation over the batch, of the scale",
                        spread,
                        "<",
                        self.limit,
                        "",
                        layer.site(Role.OUTPUT),
                        Stat.BATCH_STD,
                    ),
                ),
                (narrow_norms.fix(layer, recording),),
                places=tuple(item.name for item, _ in chain[index:]),
            )

    def _spread(self, recording: Recording, layer: Layer, end: int) -> float | None:
        """The largest variation over the batch in the last sampled steps, per scale; None when unknown."""
        whole, scales = recording.of_layer(layer, Stat.BATCH_STD), recording.of_layer(layer, Stat.RMS)
        if whole is None or scales is None or layer.kind is Kind.EMBEDDING:
            return None
        steps, *values = shared(before(whole, end), before(scales, end))
        if len(steps) < self.min_steps:
            return None
        late, size = (found[-self.min_steps :] for found in values)
        return float(np.max(np.divide(late, size, out=np.zeros_like(late), where=size > 0)))
