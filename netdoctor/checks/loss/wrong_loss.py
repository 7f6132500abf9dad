"""A loss function that does not fit what the targets are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss import class_numbers
from netdoctor.checks.loss.class_numbers import CLASSES
from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, REGRESSION, Comparison, comparisons, line, width
from netdoctor.checks.loss.labels_kept import rewritten, taken_from
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, SourceLine

BINARY = {"CrossEntropyLoss": "BCEWithLogitsLoss", "cross_entropy": "binary_cross_entropy_with_logits"}
SQUARED = {"CrossEntropyLoss": "MSELoss", "cross_entropy": "mse_loss"}


@dataclass(frozen=True)
class WrongLoss(Check):
    """The loss function does not fit the targets: several labels per sample, real numbers, or class numbers.

    What it is: cross_entropy with several labels per sample (its softmax lets only one of them be true), with real
    numbers, or with a single output (its softmax is always 1); a squared error that asks one or each of several outputs
    for the class number.
    Why it hurts: the right answer is not where the loss is smallest, or the loss is 0 from the start.
    How it is decided: on shapes and values of the captured step. Float targets of cross_entropy: whole numbers 0 and 1
    that add up to more than one per sample, or whose argmax is the target; numbers outside of [0, 1]. A prediction with
    one class. Whole-number targets with one column against several outputs of a regression loss. Whole numbers from 0
    or 1 on, at least 4, against one output: by experiment, where classes are right for 20 % more samples, and second
    choices show no order.
    When it stays silent: class indices; one-hot targets; soft labels, mixup, smoothing; one-hot regression; counts,
    ratings and other scales regressed with one output; three classes, whose order cannot be told.
    Fix: binary_cross_entropy_with_logits for several labels, mse_loss for real numbers, cross_entropy for classes.
    Sources: PyTorch's documentation; advice E-A2.
    """

    name = "wrong-loss"
    arms = frozenset({class_numbers.NUMBERS, class_numbers.NAMES})
    explains = NO_LEARNING | NO_SIGNAL | {"initial-loss", "output-activation", "double-softmax"}

    labels: float = 1.02  # per sample: one-hot targets and mixtures add up to exactly 1
    slack: float = 1e-3  # rounding of soft labels stays far under it

    def judge(self, recording: Recording) -> Iterator[Finding]:
        arms = class_numbers.named(recording)
        if arms is not None:
            yield class_numbers.finding(self.name, recording, *arms)
        for comparison in comparisons(recording):
            if comparison.prediction.requires_grad:
                if comparison.operation.name == CROSS_ENTROPY:
                    yield from self._of_classes(recording, comparison)
                elif comparison.operation.name in REGRESSION:
                    yield from self._of_numbers(recording, comparison)

    def _of_classes(self, recording: Recording, comparison: Comparison) -> Iterator[Finding]:
        target, prediction = comparison.target, comparison.prediction
        source, count = line(recording, comparison.operation), width(prediction)
        if count == 1 and len(prediction.shape) > 1:
            title = "cross_entropy is given one output, whose softmax is always 1"
            says = "With a single class the loss is 0, or as good as constant, whatever the model says."
            evidence = Evidence("classes", 1.0, "<", 2.0)
            yield self._finding(title, says, evidence, source, BINARY)
        elif (table := taken_from(comparison)) is not None and table.mean * count > self.labels:
            per_sample = table.mean * count
            title = f"argmax keeps one of {per_sample:.2g} labels per sample for cross_entropy"
            says = "The labels that it does not keep count as wrong answers: the model unlearns them."
            evidence = Evidence("labels per sample", per_sample, ">", 1.0)
            yield self._finding(title, says, evidence, source, BINARY, "argmax")
        elif target.dtype.startswith(("float", "bfloat")) and target.shape == prediction.shape:
            per_sample = target.mean * count
            if target.integral and (target.low, target.high) == (0, 1) and per_sample > self.labels:
                title = f"cross_entropy is given {per_sample:.2g} labels per sample"
                says = "Its softmax makes the classes exclude each other, so at most one of the labels can be met."
                evidence = Evidence("labels per sample", per_sample, ">", 1.0)
                yield self._finding(title, says, evidence, source, BINARY)
            elif target.low < -self.slack or target.high > 1 + self.slack:
                title = f"cross_entropy is given real numbers from {target.low:.3g} to {target.high:.3g} as targets"
                says = "It takes them for probabilities of classes. To predict numbers, take a regression loss."
                evidence = Evidence("largest target", target.high, ">", 1.0)
                yield self._finding(title, says, evidence, source, SQUARED)

    def _of_numbers(self, recording: Recording, comparison: Comparison) -> Iterator[Finding]:
        target, prediction = comparison.target, comparison.prediction
        count = width(prediction)
        one_column = target.shape == (*prediction.shape[:-1], 1) and len(prediction.shape) == 2
        if one_column and target.integral and target.low >= 0 and 2 <= target.high <= count - 1:
            title = f"{comparison.operation.name} asks each of {count} outputs for the class number"
            says = f"The targets are whole numbers from {target.low:g} to {target.high:g}, one each: class numbers."
            evidence = Evidence("outputs per target", count, ">", 1.0)
            yield self._finding(title, says, evidence, line(recording, comparison.operation), CLASSES)

    def _finding(
        self, title: str, says: str, number: Evidence, source: SourceLine | None, names: dict[str, str], cut: str = ""
    ) -> Finding:
        fix = Fix("fitting-loss", f"Use {list(names.values())[-1]}.", rewritten(source, names, cut), Reach.MODEL)
        at = Location.at(source, step=0)
        return Finding(self.name, title, Severity.ERROR, says, at, (number,), (fix,), first_step=0, share=1.0)
