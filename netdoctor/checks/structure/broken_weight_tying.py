"""The check `broken-weight-tying`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Kind, Parameter, Recording, Stat


@dataclass(frozen=True)
class BrokenWeightTying(Check):
    """Two weights that were meant to be one are two: equal when training starts, and drifting apart since.

    What it is: an output layer or a second embedding got the values of an embedding (`.data.copy_`, `.clone()`,
    `deepcopy`, a new `nn.Parameter`) and not the parameter itself; or the tie was made, and a copy undid it.
    Why it hurts: the output layer trains alone, rare symbols get no gradient through it, and the weights of a saved
    model mean something else than its code says.
    How it is decided: in one model, an embedding and another layer of another type (or another embedding) start with the
    very same numbers, though they are different parameters that both train; their statistics differ by 0.01 %
    or more of their scale at the end.
    When it stays silent: parameters that are one tensor, or share their memory; copied blocks, such as the layers of
    nn.TransformerEncoder and target networks; weights that merely share a shape; constants.
    Fix: assign the parameter, after everything that copies or replaces one of both.
    Sources: Press and Wolf 2017, Inan et al. 2017 (tied embeddings); transformers' `tie_weights` and its issues.
    """

    name = "broken-weight-tying"
    needs = frozenset({Stat.RMS, Stat.MEAN, Stat.ABSMAX})

    drift: float = 1e-4  # of the scale: a hundred times what rounding does, under what a few steps do

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for later in recording.parameters.values():
            earlier = recording.parameters.get(later.same_as)
            if earlier is None or not _tie(recording, earlier, later):
                continue
            drift = _drift(recording, earlier, later)
            if drift >= self.drift:
                yield self._finding(recording, earlier, later, drift)

    def _finding(self, recording: Recording, earlier: Parameter, later: Parameter, drift: float) -> Finding:
        embedding, other = (earlier, later) if earlier.name in _embeddings(recording) else (later, earlier)
        layer = recording.layer_at(other.module)
        code = f"model.{other.name} = model.{embedding.name}"
        return Finding(
            self.name,
            f"{other.name} starts as a copy of {embedding.name}, and is not tied to it",
            Severity.WARNING,
            "Both had the very same values before the first step; they are two parameters, and drift apart.",
            Location.at(layer.source if layer else None, other.module, step=0),
            (Evidence("difference at the end, of their scale", 100 * drift, "≥", 100 * self.drift, "%"),),
            (Fix("tie-weights", "Assign the parameter itself, before the optimizer is built.", code, Reach.MODEL),),
            first_step=0,
            places=(other.name, embedding.name),
            share=1.0,
        )


def _tie(recording: Recording, one: Parameter, other: Parameter) -> bool:
    """Whether two equal weights look like a tie, and not like a block that was copied whole."""
    embeddings = [p.name in _embeddings(recording) for p in (one, other)]
    alive = one.requires_grad and other.requires_grad and one.optimizer is not None and other.optimizer is not None
    if one.model != other.model or not any(embeddings) or not alive:
        return False
    return not all(embeddings) or not _copied_block(recording, one, other)


def _embeddings(recording: Recording) -> set[str]:
    return {layer.weight for layer in recording.of_kind(Kind.EMBEDDING)}


def _copied_block(recording: Recording, one: Parameter, other: Parameter) -> bool:
    """Whether the modules above both hold more parameters that are copies of one another."""
    tops = [p.module.rpartition(".")[0] for p in (one, other)]
    if tops[0] == tops[1]:
        return False
    pairs = [
        (p.name, p.same_as) for p in recording.parameters.values() if p.same_as and p is not one and p is not other
    ]
    return any(a.startswith(tops[1]) and b.startswith(tops[0]) for a, b in pairs)


def _drift(recording: Recording, one: Parameter, other: Parameter) -> float:
    """The largest difference of their mean, scale and extreme at the last step that both were measured in, over the scale."""
    found = 0.0
    for stat in (Stat.RMS, Stat.MEAN, Stat.ABSMAX):
        tracks = [recording.of_parameter(p.name, stat) for p in (one, other)]
        scales = [recording.of_parameter(p.name, Stat.RMS) for p in (one, other)]
        if None not in tracks and None not in scales:
            ends = [t.values[-1] for t in tracks if t is not None]
            found = max(found, float(abs(ends[0] - ends[1])) / max(1e-12, *(t.last for t in scales if t is not None)))
    return found
