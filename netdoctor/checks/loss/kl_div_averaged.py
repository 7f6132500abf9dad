"""A Kullback-Leibler divergence that is averaged over the classes as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import comparisons, line
from netdoctor.checks.loss.lines import told
from netdoctor.checks.training.learning_rate_too_low import LearningRateTooLow
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class KlDivAveraged(Check):
    """`kl_div` with its default reduction divides by the number of classes too, and the learning rate does not allow for it.

    What it is: `nn.KLDivLoss()` and `F.kl_div` take the mean over all numbers; the divergence is their sum over the classes.
    Why it hurts: loss and gradient are as many times too small as there are classes: the training hardly moves.
    How it is decided: on the captured step kl_div compares batches of at least 8 classes with `reduction="mean"`, and
    all that `learning-rate-too-low` asks for holds: then this is why.
    When it stays silent: a training that learns as it is; Adam, which does not feel the scale, unless the trials say so.
    Fix: `reduction="batchmean"`.
    Sources: PyTorch's documentation of KLDivLoss ("mean" doesn't return the true KL divergence value); its issue 6622.
    """

    name = "kl-div-averaged"
    needs = LearningRateTooLow.needs
    arms = LearningRateTooLow.arms
    explains = frozenset(
        {"learning-rate-too-low", "loss-not-decreasing", "cannot-overfit-tiny-batch", "underfitting", "lost-updates"}
        | {"label-input-mismatch", "initial-loss"}
    )

    classes: int = 8  # fewer make a factor that no learning rate minds

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for found in comparisons(recording):
            shape, reduction = found.prediction.shape, found.operation.attributes.get("reduction", "mean")
            classes = prod(shape[1:])
            if found.operation.name != "kl_div" or reduction != "mean" or len(shape) < 2 or classes < self.classes:
                continue
            slow = next((f for f in LearningRateTooLow().judge(recording) if isinstance(f, Finding)), None)
            if slow is None:
                return
            source = line(recording, found.operation)
            code = told(source, "reduction", '"batchmean"') or 'nn.KLDivLoss(reduction="batchmean")'
            yield Finding(
                self.name,
                f"kl_div is averaged over its {classes} classes as well, and the learning rate does not allow for it",
                Severity.WARNING,
                f"The divergence is a sum over the classes; its mean over all numbers, the default, is {classes} times smaller, "
                "and so is each step.",
                Location.at(source, None, "kl_div", step=0),
                (Evidence("classes that it is divided by", classes, "≥", self.classes), *slow.evidence),
                (Fix("batchmean", "Average over the batch alone.", code, Reach.RUN),),
                slow.certainty,
                0,
                share=1.0,
            )
            return
