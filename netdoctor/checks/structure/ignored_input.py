"""An input, or a part of one, that has no influence on the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.structure.unread import everything, listed, named
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine


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
    few: int = 3  # positions under which half of those that vary are one at each end

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arms = {name: arm for name, arm in recording.arms.items() if name.startswith("usage/")}
        failed = [arm.failure for arm in arms.values() if arm.failure]
        if failed:
            yield Abstention(self.name, failed[0])
            return
        if all(everything(arm) for arm in arms.values()):
            return
        parts = [(n, arm, part) for n, arm in enumerate(arms.values()) if (part := self._part(arm))]
        whole = [named(number, arm) for number, arm, (what, _, _) in parts if not what]
        for number, arm, part in parts:
            names = [named(number, arm)] if part[0] else whole
            if named(number, arm) == names[0]:  # inputs without any influence are one fault
                yield self._finding(recording, number, tuple(names), *part)

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
            most = share >= self.positions and silent.sum() >= self.few
            if silent.any() and share < 1 and ((feature and not border) or (most and not feature)):
                kind = ("channel" if axes >= 4 else "feature") if feature else "position"
                limit = 0.0 if feature else 100 * self.positions
                return listed(kind, silent) + f" of dimension {axis}", 100 * float(share), limit
        return None

    def _finding(
        self, recording: Recording, number: int, names: tuple[str, ...], what: str, share: float, limit: float
    ) -> Finding:
        facts = recording.inputs[number] if number < len(recording.inputs) else None
        at = SourceLine(facts.file, facts.line, facts.text) if facts is not None and facts.file else None
        grave = not what and harm(recording).state is State.HURT
        subject = f"{what} of {names[0]}" if what else " and ".join(names)
        return Finding(
            self.name,
            f"the model ignores {subject}: taken from other samples, the loss stays the same",
            Severity.ERROR if grave else Severity.WARNING,
            f"Nothing that the loss is made of depends on {'them' if len(names) > 1 else 'it'}, in the model as it was trained.",
            Location.at(at, step=0),
            (Evidence("share without influence", share, "=" if not what else "≥", limit, "%"),),
            (Fix("use-input", "Use it in forward, or do not pass it on.", "", Reach.MODEL),),
            Certainty.PROVEN,
            0,
            places=names,
            share=share / 100,
        )
