"""A second derivative in the loss that is 0 whatever the weights are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.second_derivatives import Flat, flat_derivatives, smoothed
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation
from netdoctor.recording import Arm, Recording, SourceLine
from netdoctor.trend import judge

CURVATURE = "curvature/second"
_MODULES = {"tanh": "Tanh", "silu": "SiLU"}


@dataclass(frozen=True)
class ZeroSecondDerivative(Check):
    """The loss is made of a second derivative of a net whose second derivative is 0 everywhere.

    What it is: `torch.autograd.grad` of a gradient, through ReLU, LeakyReLU or another function of straight pieces. The
    net is one of straight pieces too: its slope jumps at the kinks, and between them its second derivative is exactly 0.
    Why it hurts: an equation's residual lacks the term, whatever the weights are: they cannot be moved to fulfil it. A
    penalty on it is always 0, and does nothing.
    How it is decided: on the captured steps. The result of a grad, whose input came out of another grad, is exactly 0 in
    all entries of all batches, and straight pieces lie between. On a copy with smooth functions in their place it is
    not. An error where it is added to, or compared with, other numbers (an equation), or where training is hurt; else
    a warning.
    When it stays silent: first derivatives (gradient penalties of critics, forces); derivatives with respect to weights
    (meta-learning); smooth activations; a derivative that is 0 with smooth ones too, or is not 0 in some entry.
    Fix: a smooth activation: tanh, sine, SiLU, softplus.
    Sources: Raissi et al. 2019 (tanh nets for equations); Sitzmann et al. 2020 (SIREN, section 1: ReLU nets cannot
    hold information of second derivatives).
    """

    name = "zero-second-derivative"
    arms = frozenset({CURVATURE})
    explains = NO_LEARNING | NO_SIGNAL | {"missing-nonlinearity", "detached-graph"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found, arm = flat_derivatives(recording), recording.arms.get(CURVATURE)
        tried = arm is not None and not arm.failure
        if found and (_shown(arm) if tried else not any(flat.curved for flat in found)):
            yield self._finding(recording, found, arm if tried else None)

    def _finding(self, recording: Recording, found: list[Flat], arm: Arm | None) -> Finding:
        flat = found[0]
        activation, first = flat.activations[0], next((f for f in found if f.joined), flat)
        source = line(recording, activation)
        grave = first.joined or outcome.hurt(judge(recording))
        says = f"The loss takes a second derivative (line {flat.operation.line}) of a net of straight pieces. Between its kinks "
        says += "that is exactly 0, whatever the weights are: "
        says += "no training can fulfil what it is part of." if first.joined else "the term does nothing."
        evidence = [Evidence("entries of the second derivative that are exactly 0", 100.0, "≥", 100.0, "%")]
        if arm is not None:
            largest = float(arm.facts["smooth"])
            evidence.append(Evidence("its largest value on a copy with tanh", largest, ">", 0.0))
        modules = tuple(dict.fromkeys(o.module for o in flat.activations if o.module))
        return Finding(
            self.name,
            f"the second derivative in the loss is 0 everywhere: {activation.name} makes the net piecewise linear",
            Severity.ERROR if grave else Severity.WARNING,
            says,
            Location.at(source, activation.module or None, activation.name, step=0),
            tuple(evidence),
            tuple(_fix(source, activation, smooth) for smooth in _MODULES),
            Certainty.MEASURED if arm is None else Certainty.PROVEN,
            first_step=0,
            places=modules,
            share=1.0,
        )


def _shown(arm: Arm | None) -> bool:
    return arm is not None and float(arm.facts["zeros"]) == 1 and float(arm.facts["smooth"]) > 0


def _fix(source: SourceLine | None, activation: Operation, smooth: str) -> Fix:
    module = _MODULES[smooth]
    code = smoothed("" if source is None else source.text, activation, smooth, module)
    return Fix(f"smooth-{smooth}", f"Use {module}, which is smooth.", code, Reach.MODEL)
