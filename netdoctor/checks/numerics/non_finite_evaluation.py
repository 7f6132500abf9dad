"""The check `non-finite-evaluation`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netdoctor.check import Check
from netdoctor.data import Evaluation, TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, SourceLine


@dataclass(frozen=True)
class NonFiniteEvaluation(Check):
    """The loss of the script's own evaluation is NaN or Inf, while that of the training is finite.

    What it is: the held-out data holds what the training data does not (missing values, an empty mask, a count of 0), or
    the model does in evaluation mode what it never did in training: running statistics that overflowed, another branch.
    Why it hurts: early stopping, the best checkpoint and the schedule follow a number that is none, and the same inputs will
    come in use.
    How it is decided: the evaluation computes the training's loss under no_grad, and at least one of its values is NaN or Inf
    though every loss that was trained on is finite. Of the inputs, sampled rows tell whether they came so.
    When it stays silent: the training's own loss breaks (its own checks speak); evaluations of another loss.
    Fix: the held-out data is to go through what the training data goes through; else the operation's safe form.
    Sources: as nan-input; advice E7.
    """

    name = "non-finite-evaluation"
    explains = frozenset({"train-eval-shift", "overfitting", "batchnorm-drift"})

    def judge(self, recording: Recording) -> Iterator[Finding]:
        loss = recording.loss
        if loss is None or recording.origin is not None or not np.isfinite(loss.values).all():
            return
        for evaluation in recording.evaluations:
            bad = ~np.isfinite(evaluation.losses)
            if bad.any():
                yield self._finding(evaluation, bad)
                return

    def _finding(self, evaluation: Evaluation, bad: NDArray[np.bool_]) -> Finding:
        first = int(np.argmax(bad))
        kind = "NaN" if np.isnan(evaluation.losses[first]) else "Inf"
        given = next((facts for facts in evaluation.inputs if facts.nonfinite), None)
        what = (
            "the held-out input holds NaN or Inf"
            if given is not None
            else "its inputs are finite as far as they were sampled"
        )
        source = SourceLine(evaluation.file, evaluation.line, evaluation.text) if evaluation.file else None
        return Finding(
            self.name,
            f"the loss of the evaluation is {kind}, that of the training is finite: {what}",
            Severity.ERROR,
            _why(evaluation, given),
            Location.at(source, evaluation.module or None, step=int(evaluation.steps[first])),
            (Evidence("evaluations whose loss is NaN or Inf", float(bad.sum()), ">", 0.0),),
            (_fix(given),),
            first_step=int(evaluation.steps[first]),
            share=float(bad.mean()),
        )


def _why(evaluation: Evaluation, given: TensorFacts | None) -> str:
    if given is not None:
        return f"{given.nonfinite} of {given.nonfinite + given.rows} sampled rows of {given.name or 'the input'} are not finite."
    mode = "training" if evaluation.train_mode else "evaluation"
    return (
        f"The model ran in {mode} mode. What differs from training: running statistics of its norms, the size of the last batch, "
        "and values at the edge of an operation (log, division by a count, a mask that leaves nothing)."
    )


def _fix(given: TensorFacts | None) -> Fix:
    x = given.name if given is not None and given.name.isidentifier() else "x"
    if given is not None:
        code = f"# once, where the data is loaded; the same filling for training and held-out data\n{x} = torch.nan_to_num({x})"
        return Fix(
            "clean-held-out-input",
            "Fill in the held-out data's missing values as the training data's are.",
            code,
            Reach.RUN,
        )
    code = (
        f"bad = ~torch.isfinite(model({x})).flatten(1).all(1)\nprint(bad.nonzero())  # the held-out samples to look at"
    )
    return Fix("find-operation", "Find the held-out samples whose outputs are not finite.", code, Reach.RUN)
