"""The inputs of the evaluation are on another scale than those of the training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.generalisation import drift
from netdoctor.data import Evaluation, TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, SourceLine


@dataclass(frozen=True)
class TrainEvalShift(Check):
    """The data that the model is evaluated on has another mean or scale than what it was trained on.

    What it is: a preprocessing step (division by 255, standardisation) that only one of the two goes through, or that
    uses other numbers.
    Why it hurts: the evaluation tells nothing about the training; a good model looks bad.
    How it is decided: the inputs of passes whose results the script compares, and that no loss is trained on, are set
    beside those of the training, column by column (channel by channel): at least half of the columns differ by a factor
    of 3 or more in their standard deviation, or by 4 deviations or more in their mean; one, where the loss is 10 times
    that of the training.
    When it stays silent: augmentation of moderate size; fewer than 64 rows; tokens; data that does not vary, or that an
    earlier part of the training was given; inputs of other shapes; acting and sampling, where nothing is compared.
    Fix: one function for the preprocessing, with the numbers of the training set, for both; none of it in place.
    Sources: Breck et al., The ML Test Score, 2017 (training-serving skew); advice B6.
    """

    name = "train-eval-shift"
    explains = frozenset({"overfitting"}) | drift.HARM

    rows: int = 64  # of each: the deviation of fewer is off by a tenth and more
    scale: float = 3.0  # between the standard deviations: augmentation changes them by a third at most
    mean: float = 4.0  # standard deviations: the later part of a series with a trend lies 2 to 3 away
    worse: float = 10.0  # times the training's loss: no overfitting of a first hour looks like that
    columns: float = 0.5  # of them: one odd column may be drift in the data itself

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if recording.facts.get("moving_target"):
            return
        for evaluation in recording.evaluations:
            for place, given in enumerate(evaluation.inputs):
                trained = self._counterpart(recording, place, given)
                if trained is not None:
                    found = drift.drifting(trained, given) or self._apart(recording, evaluation, trained, given)
                    if found is not None:
                        yield found
                        return

    def _apart(
        self, recording: Recording, evaluation: Evaluation, trained: TensorFacts, given: TensorFacts
    ) -> Finding | None:
        alone = drift.far_worse(evaluation, recording.loss, self.worse)  # then one column is enough
        scale, mean = drift.shift(trained, given, 0.0 if alone else self.columns)
        far = (scale >= self.scale or mean >= self.mean) and not drift.was_once(trained, given, self.scale)
        return self._finding(evaluation, trained, given, scale, mean) if far else None

    def _counterpart(self, recording: Recording, place: int, given: TensorFacts) -> TensorFacts | None:
        """The training input at the same place and of the same shape, if both can be compared."""
        if place >= len(recording.inputs):
            return None
        trained = recording.inputs[place]
        same = trained.columns.std.shape == given.columns.std.shape and trained.axis == given.axis
        sound = min(trained.rows, given.rows) >= self.rows and len(trained.shape) == len(given.shape)
        tokens = trained.integral and given.integral and not trained.dtype.startswith("float")
        return trained if same and sound and not tokens else None

    def _finding(
        self, evaluation: Evaluation, trained: TensorFacts, given: TensorFacts, scale: float, mean: float
    ) -> Finding:
        by_scale = scale >= self.scale
        at = SourceLine(given.file, given.line, given.text) if given.file else None
        where = Location.at(at) if at else Location(file=evaluation.file or None, line=evaluation.line or None)
        words = f"a standard deviation {scale:.3g} times apart" if by_scale else f"a mean {mean:.2g} deviations away"
        return Finding(
            self.name,
            f"the evaluation's inputs are not like those of the training: {words}",
            Severity.WARNING,
            f"Training: mean {trained.mean:.4g}, standard deviation {trained.std:.4g} ({trained.rows} rows); evaluation: "
            f"mean {given.mean:.4g}, standard deviation {given.std:.4g} ({given.rows} rows).",
            where,
            (
                Evidence("standard deviations, evaluation and training: factor between", scale, "≥", self.scale)
                if by_scale
                else Evidence("distance of the means, in standard deviations", mean, "≥", self.mean),
            ),
            (Fix("same-preprocessing", "Preprocess both by one function.", "", Reach.RUN),),
            share=1.0,
        )
