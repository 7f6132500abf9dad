"""Targets that the loss cannot mean: outside of what it is defined for, or what stands for something else in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.blanks import blanks
from netdoctor.checks.loss.comparisons import BCE, BCE_LOGITS, Comparison, comparisons, line
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class LabelRange(Check):
    """A binary loss is given targets outside of [0, 1], or CTC a target that has its blank among the symbols.

    What it is: labels -1 and 1, 1 and 2, class numbers, or pixels up to 255 as the target of a binary cross-entropy,
    which expects probabilities. Symbols that are numbered from 0 for CTC, where 0 is the blank.
    Why it hurts: outside of [0, 1] the loss has no lower bound: training drives the scores to infinity. A symbol that is
    the blank as well is never read, and the loss is no probability any more: it goes below 0.
    How it is decided: on the values of the captured step: the target of binary_cross_entropy (with or without logits)
    goes below 0 or above 1. The targets of ctc_loss, all behind each other, begin or end at the blank; in rows, where
    the blank may be what fills them up, the loss must have gone below 0 too.
    When it stays silent: targets within [0, 1], soft labels included; other losses. A class index outside of the
    classes stops the script with an error of torch's own.
    Fix: map the labels to 0 and 1, or use the loss for classes; number the symbols from 1.
    Sources: PyTorch's documentation of BCEWithLogitsLoss and CTCLoss ("the target index cannot be blank").
    """

    name = "label-range"
    explains = EVERYTHING

    slack: float = 1e-3  # rounding of resized or interpolated soft labels stays under it

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in comparisons(recording):
            target = comparison.target
            outside = target.low < -self.slack or target.high > 1 + self.slack
            if comparison.operation.name in {BCE, BCE_LOGITS} and outside and not target.requires_grad:
                yield self._finding(recording, comparison)
        yield from blanks(self.name, recording)

    def _finding(self, recording: Recording, comparison: Comparison) -> Finding:
        target, loss = comparison.target, comparison.operation
        source = line(recording, loss)
        below = target.low < -self.slack
        worst = (
            Evidence("smallest target", target.low, "<", 0.0)
            if below
            else Evidence("largest target", target.high, ">", 1.0)
        )
        return Finding(
            self.name,
            f"targets of {loss.name} go from {target.low:.4g} to {target.high:.4g}, outside of [0, 1]",
            Severity.ERROR,
            f"{loss.name} expects probabilities as targets. Outside of [0, 1] it has no lower bound, so training drives "
            "the scores to infinity.",
            Location.at(source, None, loss.name, step=0),
            (worst,),
            (Fix("map-labels", *_mapping(target.low, target.high, target.integral), Reach.RUN),),
            first_step=0,
            share=1.0,
        )


def _mapping(low: float, high: float, integral: bool) -> tuple[str, str]:
    if integral and (low, high) == (-1, 1):
        return "Map -1 and 1 to 0 and 1.", "target = (target + 1) / 2"
    if integral and high - low == 1:
        return f"Start at 0: subtract {low:g}.", f"target = target - {low:g}"
    if integral and 2 <= high <= 1000 and low == 0:
        return "These are class numbers: use cross_entropy, with one output per class.", ""
    return "Scale the targets to [0, 1].", f"target = (target - {low:g}) / {high - low:g}"
