"""Probabilities in a binary loss that expects logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import BCE_LOGITS, comparisons, line, place
from netdoctor.checks.loss.lines import renamed, without
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

SQUASHED = frozenset({"sigmoid", "softmax", "hardsigmoid", "gumbel_softmax"})
EXPECT_LOGITS = frozenset({BCE_LOGITS, "multilabel_soft_margin_loss"})


@dataclass(frozen=True)
class ProbabilitiesIntoLogitLoss(Check):
    """The output of a sigmoid goes into binary_cross_entropy_with_logits, which applies a sigmoid itself.

    What it is: the loss expects raw scores (logits). Given probabilities p it works with sigmoid(p), which lies
    between 0.5 and 0.73.
    Why it hurts: the model can never say "no": the loss of a negative sample cannot fall under 0.69, and gradients are
    small.
    How it is decided: on the operations of the captured step. What the loss is given as its prediction was made by a
    sigmoid (or softmax), with nothing but reshapes in between.
    When it stays silent: a sigmoid before `binary_cross_entropy`, which expects it; probabilities as the target.
    Fix: leave the sigmoid out, or use the loss for probabilities.
    Sources: PyTorch's documentation of BCEWithLogitsLoss; advice B3.
    """

    name = "probabilities-into-logit-loss"
    explains = NO_LEARNING | NO_SIGNAL | {"output-activation", "wrong-dim-softmax"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in comparisons(recording):
            maker, prediction, loss = comparison.maker, comparison.prediction, comparison.operation
            if loss.name not in EXPECT_LOGITS or maker is None or maker.name not in SQUASHED:
                continue
            source = line(recording, maker)
            yield Finding(
                self.name,
                f"{maker.name} in {place(maker)} goes into {loss.name}, which applies a sigmoid itself",
                Severity.ERROR,
                f"It is given numbers between {prediction.low:.2g} and {prediction.high:.2g} where it expects raw "
                "scores, so the probabilities that it works with lie between 0.5 and 0.73.",
                Location.at(source, maker.module or None, maker.name, step=0),
                (
                    Evidence("smallest score given to the loss", prediction.low, "≥", 0.0),
                    Evidence("largest score given to the loss", prediction.high, "≤", 1.0),
                ),
                (
                    Fix("remove-sigmoid", "Give the raw scores to the loss.", without(source, maker.name), Reach.MODEL),
                    Fix(
                        "loss-for-probabilities",
                        "Or keep it, and use the loss for probabilities.",
                        renamed(
                            line(recording, loss),
                            {
                                "BCEWithLogitsLoss": "BCELoss",
                                "binary_cross_entropy_with_logits": "binary_cross_entropy",
                            },
                        ),
                        Reach.MODEL,
                    ),
                ),
                first_step=0,
                share=1.0,
            )
