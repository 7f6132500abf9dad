"""Gradient clipping that clips nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import harm
from netdoctor.checks.signal.consequences import NO_TRAINING, NON_FINITE
from netdoctor.checks.training.optimizer_line import first_source, variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

_HARM = NON_FINITE | NO_TRAINING | {"learning-rate-too-high", "loss-diverging"}  # of steps of any size
_ARGUMENT = re.compile(r"\bclip_grad_(?:norm|value)_\(\s*([A-Za-z_][\w.]*)\s*,")


@dataclass(frozen=True)
class ClippingWithoutEffect(Check):
    """The script clips gradients where there are none, or after they were used.

    What it is: `params = model.parameters()` is a generator: the optimizer uses it up, and clipping is given nothing. Or
    the call stands before `backward()`, or after `step()`.
    Why it hurts: spikes of the gradient that the limit was meant for reach the weights in full.
    How it is decided: none of the parameters that any call was given had a gradient; or each call came neither right
    after a backward pass nor right before a step. And the gradient norm at the step was above the limit at least once.
    An error where the loss rises or comes to NaN and the norm to ten times the limit, else a warning.
    When it stays silent: under 8 calls; gradients that stay under the limit, for which it makes no difference.
    Fix: `list(model.parameters())`; the call between `backward()` and `step()`.
    Sources: PyTorch's warning of clip_grad_norm_ for an empty generator; its recipe "Working with unscaled gradients".
    """

    name = "clipping-without-effect"
    explains = frozenset({"exploding-gradients", "recurrent-gradients", "unstable-loss"})

    calls: int = 8  # fewer say little of a loop
    far: float = 10.0  # times the limit: a step that much larger than it was meant to be

    def judge(self, recording: Recording) -> Iterator[Finding]:
        limits, norms = recording.scalars.get("clip limit"), recording.scalars.get("gradient norm")
        calls, nothing = recording.counts.get("clip", 0), recording.counts.get("clip of nothing", 0)
        if calls < self.calls or limits is None or norms is None or not limits.values.size or not norms.values.size:
            return
        limit, largest = float(limits.values.max()), float(norms.values[~np.isnan(norms.values)].max(initial=0.0))
        order = _order(recording)
        if largest > limit and (nothing == calls or order):
            yield self._finding(recording, limit, largest, order)

    def _finding(self, recording: Recording, limit: float, largest: float, order: str) -> Finding:
        state, source = harm(recording), first_source(recording, "clip")
        says = f"The clipping at {limit:g} {order or 'is given parameters without a gradient'}, in every call."
        text = "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)" if source is None else source.text
        code = f"loss.backward()\n{text}\n{variable(recording)}.step()"
        fix = Fix("clip-gradients", "Clip between backward and step.", code, Reach.RUN)
        if not order:
            given = found[1] if (found := _ARGUMENT.search(text)) else "parameters"
            code = f"{given} = list(model.parameters())  # before the optimizer is made\n{text}"
            fix = Fix("clip-gradients", "Keep the parameters in a list: a generator is used up once.", code, Reach.RUN)
        hurt = state.trend.kind in {"non-finite", "rises"} and largest > self.far * limit
        return Finding(
            self.name,
            f"gradients are not clipped: norms of up to {largest:.3g} reach the step, at a limit of {limit:g}",
            Severity.ERROR if hurt else Severity.WARNING,
            f"{says} {state.words}",
            Location.at(source),
            (Evidence("largest gradient norm at a step", largest, ">", limit),),
            (fix,),
            first_step=0,
            share=1.0,
            causes=_HARM if hurt else frozenset(),
        )


def _order(recording: Recording) -> str:
    """Where all calls stand, if at no place where they have an effect; "" else."""
    kinds = [e.kind for e in recording.events if e.kind in {"backward", "step", "zero_grad", "clip"}]
    before, found = "", []
    for at, kind in enumerate(kinds):
        after = next((k for k in kinds[at + 1 :] if k != "clip"), "")
        if kind != "clip":
            before = kind
        elif after:  # the last one may have been cut short
            found.append((before, after))
    if not found or any(before == "backward" or after == "step" for before, after in found):
        return ""
    return "comes after the step" if all(before == "step" for before, _ in found[1:]) else "comes before backward"
