"""Softmax before a loss that applies softmax itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, Comparison, comparisons, line, place
from netdoctor.checks.loss.lines import without
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

SOFTMAXES = frozenset({"softmax", "softmin", "gumbel_softmax"})
UNCHANGED = "log_softmax"  # log-softmax of log-softmax is the same again: superfluous, but right


@dataclass(frozen=True)
class DoubleSoftmax(Check):
    """The output of a softmax goes into cross_entropy, which applies softmax itself.

    What it is: `cross_entropy` expects raw scores (logits). Given probabilities it takes the softmax of numbers between
    0 and 1, which is nearly uniform however sure the model is.
    Why it hurts: for 10 classes the loss cannot fall under 1.46, where it should reach 0; gradients are several times
    too small; training crawls or stops.
    How it is decided: on the operations of the captured step. What cross_entropy is given as its prediction was made by
    a softmax, with nothing but reshapes in between.
    When it stays silent: probabilities as the target (distillation, label smoothing, mixup); a softmax inside of the
    model that is followed by other layers (attention, mixtures). A log-softmax there changes nothing, and is advice.
    Fix: give the raw scores to the loss; take the softmax only where probabilities are read.
    Sources: PyTorch's documentation of CrossEntropyLoss; UMLAUT; advice B3, E-A1.
    """

    name = "double-softmax"
    explains = NO_LEARNING | NO_SIGNAL | {"wrong-dim-softmax", "output-activation"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in comparisons(recording):
            maker = comparison.maker
            if comparison.operation.name == CROSS_ENTROPY and maker is not None and comparison.prediction.requires_grad:
                if maker.name in SOFTMAXES:
                    yield self._finding(comparison, recording, Severity.ERROR)
                elif maker.name == UNCHANGED:
                    yield self._finding(comparison, recording, Severity.ADVICE)

    def _finding(self, comparison: Comparison, recording: Recording, severity: Severity) -> Finding:
        maker, prediction = comparison.maker, comparison.prediction
        assert maker is not None
        source = line(recording, maker)
        again = maker.name == UNCHANGED
        says = (
            "The second log-softmax changes nothing, so the first one is superfluous."
            if again
            else f"Cross-entropy takes the softmax by itself, so it gets numbers between {prediction.low:.2g} and "
            f"{prediction.high:.2g} where it expects raw scores: the result is nearly uniform, and gradients are small."
        )
        fix = Fix("remove-softmax", "Give the raw scores to the loss.", without(source, maker.name), Reach.MODEL)
        return Finding(
            self.name,
            f"{maker.name} in {place(maker)} goes into cross_entropy, which applies softmax itself",
            severity,
            says,
            Location.at(source, maker.module or None, maker.name, step=0),
            (Evidence("largest score given to cross_entropy", prediction.high, "≤", 1.0 if not again else 0.0),),
            (fix,),
            first_step=0,
            share=1.0,
        )
