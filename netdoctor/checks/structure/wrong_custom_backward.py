"""A custom autograd function whose gradient is not that of its forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.checks.structure.silent_backward import starved, starving
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine

PREFIX = "custom backward/"
CODE = "x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)\ntorch.autograd.gradcheck({name}.apply, (x,))"


@dataclass(frozen=True)
class WrongCustomBackward(Check):
    """The `backward` of a `torch.autograd.Function` of the script's own does not fit its `forward`.

    What it is: a factor or sign that was left out, the derivative of another function, a gradient for the wrong
    argument, a saved tensor that was changed in between.
    Why it hurts: everything behind it is trained along a wrong direction, without any error message.
    How it is decided: the function is called with the arguments of the captured step in double precision on a copy, and
    its gradient along 4 random directions of each input is set beside central differences. An error where the median is
    off by 1 % or more. Also where it gives no gradient at all, and parameters that go through it have a gradient of
    exactly 0 in all of at least 8 sampled steps.
    When it stays silent: functions that fit; random ones and those that refuse double precision (an abstention). Where
    the gradient is off on purpose it is advice: a gradient through what is flat (rounding, clipping: straight-through
    and surrogate gradients), a function that gives back its input (gradient reversal, scaling), an input whose gradient
    is None or zero everywhere (stop-gradient).
    Fix: derive the formula anew; hold it with `torch.autograd.gradcheck`, or leave the derivative to autograd.
    Sources: PyTorch's notes on extending autograd and gradcheck; Bengio et al., 2013 (straight-through); Ganin and
    Lempitsky, 2015 (gradient reversal).
    """

    name = "wrong-custom-backward"
    arms = frozenset({PREFIX})
    explains = EVERYTHING

    steps: int = 8  # sampled ones: a gradient that comes and goes shows
    off: float = 0.01  # of the gradient: central differences are off by 1e-8, approximate formulas by 1e-3

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        for name, arm in recording.arms.items():
            if not name.startswith(PREFIX):
                continue
            if arm.failure:
                yield Abstention(self.name, arm.failure)
            elif arm.facts.get("silent") and (lost := starved(recording, self.steps)):
                yield starving(self.name, name.removeprefix(PREFIX), arm, lost, recording)
            elif float(arm.facts.get("off", 0.0)) >= self.off:
                yield self._finding(name.removeprefix(PREFIX), arm)

    def _finding(self, name: str, arm: Arm) -> Finding:
        on_purpose = any(arm.facts.get(kind) for kind in ("passes", "identity", "stops"))
        file, off = str(arm.facts.get("file", "")), float(arm.facts["off"])
        at = SourceLine(file, int(float(arm.facts.get("line", 0))), str(arm.facts.get("text", ""))) if file else None
        factor = float(arm.facts.get("factor", math.nan))
        says = "Its gradient is not the derivative of its forward pass, by finite differences in double precision."
        if on_purpose:
            says = "Straight-through gradients, gradient reversal and stop-gradients are so on purpose."
        elif math.isfinite(factor):
            says += f" It is {factor:.4g} times what it should be."
        return Finding(
            self.name,
            f"the backward of {name} is off by {100 * off:.3g} % (input {float(arm.facts.get('input', 0)) + 1:.0f})",
            Severity.ADVICE if on_purpose else Severity.ERROR,
            says,
            Location.at(at, operation=f"{name}.apply", step=0),
            (Evidence("relative error of the gradient", 100 * off, "≥", 100 * self.off, "%"),),
            (Fix("derive-again", "Derive it anew, and test it:", CODE.format(name=name), Reach.MODEL),),
            Certainty.PROVEN,
            0,
            places=(name,),
            share=1.0,
        )
