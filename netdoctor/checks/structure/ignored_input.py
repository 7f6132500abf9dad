"""An input, or a part of one, that has no influence on the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Array, Recording, SourceLine


@dataclass(frozen=True)
class IgnoredInput(Check):
    """The model is given something that it does not read: a tensor, features, channels, most positions of a sequence.

    What it is: an argument of `forward` that is not used, a slice that is too short (`x[:, :6]`), the same slice twice,
    `states[:, 0]` of a recurrent network in place of `states[:, -1]`, a mask that is not passed on.
    Why it hurts: what the targets depend on may lie in just that part; padding that is not masked counts as data.
    How it is decided: on a copy of the trained model, on up to 3 captured batches, the part is taken from other samples
    and the loss stays the same to the last bit. Only parts that vary over the samples are asked. A warning for a whole
    tensor, a feature, a channel, or half of the positions; an error where a whole tensor is ignored and training does
    not work.
    When it stays silent: parts that do not vary (padding, constant features); a few positions or border pixels; models
    that read nothing at all (input-independent-output); inputs that want a gradient.
    Fix: use it, or do not pass it on.
    Sources: torchtest (inputs that have no effect); Karpathy, A Recipe for Training Neural Networks, 2019.
    """

    name = "ignored-input"
    explains = frozenset({"no-gradient", "underfitting", "loss-not-decreasing", "label-input-mismatch"})

    wide: int = 64  # features or more may be a signal in time: strides leave out up to 5 % at its ends
    positions: float = 0.5  # of a sequence or an image side: strides leave a border, a loss its last token

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arms = {name: arm for name, arm in recording.arms.items() if name.startswith("usage/")}
        failed = [arm.failure for arm in arms.values() if arm.failure]
        if failed:
            yield Abstention(self.name, failed[0])
            return
        if all(_everything(arm) for arm in arms.values()):
            return
        for number, arm in enumerate(arms.values()):
            part = self._part(arm)
            if part:
                yield self._finding(recording, number, arm, *part)

    def _part(self, arm: Arm) -> tuple[str, float, float] | None:
        """(what is ignored, its share in percent, the limit); None where enough is read."""
        if arm.facts.get("whole"):
            return "", 100.0, 100.0
        axes = int(float(arm.facts.get("axes", 0)))
        for name, curve in arm.curves.items():
            axis, silent = int(name.split()[-1]), curve == 1
            feature = axis == (1 if axes >= 4 else axes - 1) and not arm.facts.get("tokens")
            share = silent.sum() / max(1, np.isfinite(curve).sum())
            border = silent.size >= self.wide and share < 0.05 and silent[0] + silent[-1]
            if silent.any() and share < 1 and ((feature and not border) or share >= self.positions):
                kind = ("channel" if axes >= 4 else "feature") if feature else "position"
                limit = 0.0 if feature else 100 * self.positions
                return _listed(kind, silent) + f" of dimension {axis}", 100 * float(share), limit
        return None

    def _finding(self, recording: Recording, number: int, arm: Arm, what: str, share: float, limit: float) -> Finding:
        facts = recording.inputs[number] if number < len(recording.inputs) else None
        name = str(arm.facts.get("argument", "")) or f"input {number + 1}"
        at = SourceLine(facts.file, facts.line, facts.text) if facts is not None and facts.file else None
        grave = not what and harm(recording).state is State.HURT
        subject = f"{what} of {name}" if what else name
        return Finding(
            self.name,
            f"the model ignores {subject}: taken from other samples, the loss stays the same",
            Severity.ERROR if grave else Severity.WARNING,
            "Nothing that the loss is made of depends on it, in the model as it was trained.",
            Location.at(at, step=0),
            (Evidence("share without influence", share, "=" if not what else "≥", limit, "%"),),
            (Fix("use-input", "Use it in forward, or do not pass it on.", "", Reach.MODEL),),
            Certainty.PROVEN,
            0,
            places=(name,),
            share=share / 100,
        )


def _everything(arm: Arm) -> bool:
    """Whether nothing of the input is read: then there is another fault, and it is not here."""
    curves = [curve[np.isfinite(curve)] for curve in arm.curves.values()]
    return bool(arm.facts.get("whole")) or any(curve.size > 0 and bool((curve == 1).all()) for curve in curves)


def _listed(kind: str, silent: Array) -> str:
    found = np.flatnonzero(silent)
    if found.size == 1:
        return f"{kind} {found[0]}"
    run = found[-1] - found[0] + 1 == found.size
    return f"{kind}s {found[0]} to {found[-1]}" if run else f"{found.size} {kind}s"
