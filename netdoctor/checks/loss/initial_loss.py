"""The check `initial-loss`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.beginnings import expected_loss, smaller_embeddings, smaller_start, steps_until
from netdoctor.checks.loss.comparisons import RESHAPES, Comparison, comparisons, line
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Stat

_SCALED = RESHAPES | {"clamp", "clip", "add", "sub", "rsub", "mul", "div", "truediv", "neg"}


@dataclass(frozen=True)
class InitialLoss(Check):
    """The loss starts far above what a prediction without any knowledge gets, and the run pays for it.

    What it is: an untrained model should be unsure: about ln C for C classes, ln 2 for yes or no, the mean square of the
    targets for a squared error. A far higher loss means confident predictions of nothing: the output layer, or the
    signal that reaches it, is too large.
    Why it hurts: the first part of the run only brings the outputs back to size, with gradients that have little to do
    with the task.
    How it is decided: the very first loss is at least 2.5 times that of a constant prediction, and it takes 8 steps and
    a tenth of the run, or more, to get below it.
    When it stays silent: loaded weights; losses of several terms, weighted or summed ones, whose start is not known; a
    start that is left behind in a few steps; a cosine, whose size no layer sets: untrained outputs are nearly parallel.
    Fix: a smaller last layer; its bias at the mean of the targets, or at the log of the class frequencies.
    Sources: Karpathy's recipe for training neural networks ("verify loss @ init"), CS231n ("look for correct loss").
    """

    name = "initial-loss"
    needs = frozenset({Stat.MEAN, Stat.STD})

    ratio: float = 2.5  # He's initialisation of a last layer makes up to 1.5
    steps: int = 8  # fewer are hardly seen
    share: float = 0.1  # of the run
    least: int = 30  # steps of the run: a tenth of fewer is not worth a word

    def judge(self, recording: Recording) -> Iterator[Finding]:
        series, pair = recording.loss, next(comparisons(recording), None)
        if series is None or pair is None or recording.facts.get("pretrained") or recording.steps < self.least:
            return
        if _is_cosine(pair):
            return
        expected = expected_loss(recording, pair)
        first = float(series.values[0]) if series.values.size and series.steps[0] == 0 else math.nan
        lost = steps_until(series, expected)
        share = lost / max(1, recording.steps)
        if first >= self.ratio * expected and lost >= self.steps and share >= self.share:
            yield self._finding(recording, pair, first, expected, lost)

    def _finding(self, recording: Recording, pair: Comparison, first: float, expected: float, lost: int) -> Finding:
        maker = pair.maker
        layer = recording.layer_at(maker.module) if maker is not None and maker.module else None
        source = line(recording, maker) if maker is not None else None
        share = lost / max(1, recording.steps)
        says = f"It takes {lost} steps, {100 * share:.0f} % of the run, to be as good as a constant prediction."
        fixes = smaller_embeddings(recording, pair)
        if layer is not None and layer.weight:
            fixes = (smaller_start(recording, layer, expected / first),)
        return Finding(
            self.name,
            f"the first loss is {first:.3g}, where knowing nothing would give {expected:.3g}",
            Severity.WARNING,
            f"The untrained model is confident, and wrong. {says}",
            Location.at(source, layer.path if layer else None, step=0),
            (Evidence("first loss over that of a constant prediction", first / expected, "≥", self.ratio),),
            fixes,
            first_step=0,
            share=min(1.0, share),
        )


def _is_cosine(pair: Comparison) -> bool:
    """Whether the prediction is a cosine of two outputs, shifted and scaled at most."""
    made = pair.graph.producer(pair.prediction.index)
    while made is not None and made.inputs and made.name in _SCALED:
        made = pair.graph.producer(made.inputs[0])
    return made is not None and made.name == "cosine_similarity"
