"""Logits that are multiplied by a huge factor before a cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.beginnings import steps_until
from netdoctor.checks.loss.comparisons import width
from netdoctor.checks.loss.logit_scale import LARGEST, LogitScale, largest_scale, smaller
from netdoctor.checks.loss.symptoms import NO_LEARNING
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class LogitScaleTooLarge(Check):
    """A factor multiplies the logits by far more than a softmax can use, so that it picks one class before it knows any.

    What it is: similarities times a (learned) scale, or divided by a temperature, into a cross-entropy. The scale was
    stored as it is and exponentiated in forward, or the temperature is far too small.
    Why it hurts: the loss starts hundreds of times above that of a guess, and its gradient is that of a hard choice: only
    the largest logit of each row is moved, and by steps that the other samples undo.
    How it is decided: in the first step, a factor above 100 stands between the model and a plain cross-entropy of C
    classes, whose value is at least 10 ln C and most of the loss; and the run takes 8 steps and a tenth of it, or more, to
    get below ln C. An error where it never does. A copy is trained with the factor of the fix.
    When it stays silent: scales up to 100, as margins on normalised features have (30 to 64); loaded weights; small
    outputs that need the factor; weighted or summed losses; a start that is left behind in a few steps.
    Fix: store the logarithm of what is exponentiated; begin at 1/0.07.
    Sources: Radford et al. 2021 (CLIP: learned as log, first 1/0.07, clipped at 100 against instability).
    """

    name = "logit-scale-too-large"
    explains = NO_LEARNING | {"exploding-gradients", "saturated-activation"}

    scale: float = LARGEST  # where CLIP clips it
    ratio: float = 10.0  # of the first loss: He's initialisation of a last layer makes up to 1.5
    steps: int = 8
    share: float = 0.1  # of the run
    least: int = 30  # steps of the run, as for initial-loss

    def judge(self, recording: Recording) -> Iterator[Finding]:
        series, found = recording.loss, largest_scale(recording)
        if series is None or found is None or recording.facts.get("pretrained") or recording.steps < self.least:
            return
        pair, classes = found.pair, width(found.pair.prediction)
        if not found.size > self.scale or classes < 2 or pair.operation.attributes.get("reduction", "mean") != "mean":
            return
        guess, first = math.log(classes), float(series.values[0])
        own = pair.graph.values[pair.operation.outputs[0]].mean
        lost = steps_until(series, guess)
        late = lost >= max(self.steps, self.share * recording.steps)
        if own >= self.ratio * guess and first <= 4 * own and late:  # two directions of one comparison, and little else
            yield self._finding(recording, found, own / guess, lost)

    def _finding(self, recording: Recording, found: LogitScale, ratio: float, lost: int) -> Finding:
        never = lost > recording.steps - 1
        ends = "never gets below it" if never else f"takes {lost} steps to get below it"
        says = f"The first loss is {ratio:.3g} times that of a guess among all classes (ln C), and the run {ends}: the softmax "
        says += "picks one class per row before anything was learned. "
        if found.exponentiated:
            says += f"The factor is the exponential of {found.parameter}, which starts at {found.value:.3g}."
        return Finding(
            self.name,
            f"the logits are multiplied by {found.size:.3g} before the cross-entropy",
            Severity.ERROR if never else Severity.WARNING,
            says,
            Location.at(found.made(), None, found.operation.name, step=0),
            (
                Evidence("factor of the logits", found.size, ">", self.scale),
                Evidence("first loss over ln C", ratio, "≥", self.ratio),
            ),
            (Fix("scale-logits", *smaller(recording, found), Reach.MODEL),),
            first_step=0,
            share=1.0,
        )
