"""Forget gates that start half closed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.signal import initialisation
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Kind, Layer, Recording, Role, Stat


@dataclass(frozen=True)
class LstmForgetBias(Check):
    """An LSTM starts with a forget bias of about 0, so that its memory halves at each position.

    What it is: sigmoid(0) = 0.5: after 10 positions 1e-3 of a memory is left before training opens the gate.
    Why it hurts: long dependencies are learned late or not at all.
    How it is decided: the mean of the input and hidden biases together (a quarter are forget biases) is under 0.125 at
    step 0, half of what a forget bias of 1 gives. Advice only.
    When it stays silent: GRU and plain RNN; pretrained models; a forget bias of 1 in either bias.
    Fix: set the forget part of one bias to 1.
    Sources: Gers et al. 2000; Jozefowicz et al. 2015.
    """

    name = "lstm-forget-bias"
    needs = frozenset({Stat.MEAN})

    limit: float = 0.125  # a forget bias of 1 in one of both biases has a mean of 0.25 over the four gates

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for layer in {
            x.path: x for x in recording.of_kind(Kind.RECURRENT) if x.type == "LSTM" and x.call == 0
        }.values():
            mean = self._mean(recording, layer)
            if mean is not None and abs(mean) < self.limit and not recording.facts.get("pretrained"):
                yield self._finding(recording, layer, mean)

    def _mean(self, recording: Recording, layer: Layer) -> float | None:
        names = (f"{layer.path}.bias_ih_l0".lstrip("."), f"{layer.path}.bias_hh_l0".lstrip("."))
        tracks = [recording.of_parameter(name, Stat.MEAN, Role.WEIGHT) for name in names]
        found = [track.values[0] for track in tracks if track is not None and track.steps[0] == 0]
        return float(sum(found)) if len(found) == len(names) else None

    def _finding(self, recording: Recording, layer: Layer, mean: float) -> Finding:
        name = initialisation.expression(recording, f"{layer.path}.bias_ih_l0".lstrip("."))
        code = f"with torch.no_grad():\n    hidden = {name}.numel() // 4\n    {name}[hidden : 2 * hidden].fill_(1.0)"
        return Finding(
            check=self.name,
            title=f"the forget bias of {layer.spoken} starts at about 0",
            severity=Severity.ADVICE,
            explanation="Its forget gates start half closed, so that memory halves at each position.",
            location=Location.at(layer.source, layer.path, step=0),
            evidence=(Evidence("mean of the biases at step 0", mean, "<", self.limit),),
            fixes=(
                Fix("forget-bias", "Set the forget part of the bias (the second quarter) to 1.", code, Reach.MODEL),
            ),
        )
