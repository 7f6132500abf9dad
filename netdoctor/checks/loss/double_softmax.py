"""Softmax before a loss that applies softmax itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, comparisons, line, place
from netdoctor.checks.loss.lines import without
from netdoctor.checks.loss.renormalised import Renormalised, renormalised
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, Value
from netdoctor.recording import Recording, SourceLine

SOFTMAXES = frozenset({"softmax", "softmin", "gumbel_softmax"})
_LOGITS = re.compile(r"(\w+)\(((?:[^()]*,)?\s*)logits\s*=")
UNCHANGED = "log_softmax"  # log-softmax of log-softmax is the same again: superfluous, but right

ONES = SOFTMAXES | {UNCHANGED}
RAW = "Give the raw scores to the loss."


@dataclass(frozen=True)
class DoubleSoftmax(Check):
    """The output of a softmax goes into a loss or a distribution that applies softmax itself.

    What it is: `cross_entropy` and `Categorical(logits=...)` expect raw scores (logits). Given probabilities they take the
    softmax of numbers between 0 and 1, which is nearly uniform however sure the model is.
    Why it hurts: for 10 classes the loss cannot fall under 1.46, where it should reach 0; a policy of 5 actions cannot take
    one in more than 40 % of cases; gradients are several times too small; training crawls or stops.
    How it is decided: on the operations of the captured step. What cross_entropy is given as its prediction, or what the
    loss uses the log-softmax of, was made by a softmax, with nothing but reshapes or a learned temperature in between.
    When it stays silent: probabilities as the target (distillation, label smoothing, mixup); a softmax inside of the
    model that is followed by other layers (attention, mixtures); logarithms of it; entropies; another axis. A log-softmax
    before cross_entropy changes nothing, and is advice.
    Fix: give the raw scores to the loss; take the softmax only where probabilities are read.
    Sources: PyTorch's documentation of CrossEntropyLoss and Categorical; UMLAUT; advice B3, E-A1.
    """

    name = "double-softmax"
    explains = NO_LEARNING | NO_SIGNAL | {"wrong-dim-softmax", "output-activation"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in comparisons(recording):
            maker, taken = comparison.maker, comparison.operation.name == CROSS_ENTROPY
            if taken and maker is not None and maker.name in ONES and comparison.prediction.requires_grad:
                source = line(recording, maker)
                fix = RAW, without(source, maker.name)
                yield self._finding(maker, comparison.prediction, CROSS_ENTROPY, source, fix)
        for found in renormalised(recording):
            source, fix = _advice(recording, found)
            yield self._finding(found.maker, found.given, _taker(found), source, fix)

    def _finding(
        self, maker: Operation, given: Value, taker: str, source: SourceLine | None, fix: tuple[str, str]
    ) -> Finding:
        again = maker.name == UNCHANGED
        says = (
            "The second log-softmax changes nothing, so the first one is superfluous."
            if again
            else f"{taker[0].upper()}{taker[1:]} takes the softmax by itself, so it gets numbers between {given.low:.2g} and "
            f"{given.high:.2g} where it expects raw scores: the result is nearly uniform, and gradients are small."
        )
        return Finding(
            self.name,
            f"{maker.name} in {place(maker)} goes into {taker}, which applies softmax itself",
            Severity.ADVICE if again else Severity.ERROR,
            says,
            Location.at(source, maker.module or None, maker.name, step=0),
            (Evidence(f"largest score given to {taker}", given.high, "≤", 1.0 if not again else 0.0),),
            (Fix("remove-softmax", *fix, Reach.MODEL),),
            first_step=0,
            share=1.0,
        )


def _taker(found: Renormalised) -> str:
    given = _LOGITS.search(found.operation.text)
    if found.operation.name == "logsumexp" and given:
        return f"{given[1]}(logits=...)"
    return "log_softmax" if found.operation.name == "log_softmax" else "what subtracts its logsumexp"


def _advice(recording: Recording, found: Renormalised) -> tuple[SourceLine | None, tuple[str, str]]:
    """Where to change what: a distribution can be told that it is given probabilities."""
    if _LOGITS.search(found.operation.text) and found.operation.name == "logsumexp" and not found.tempered:
        source = line(recording, found.operation)
        return source, (
            "Say that these are probabilities; or leave the softmax out and give the raw scores.",
            _LOGITS.sub(r"\g<1>(\g<2>probs=", found.operation.text),
        )
    source = line(recording, found.maker)
    return source, (RAW, without(source, found.maker.name))
