"""The check `accumulation-scaling`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.signal import outcome
from netdoctor.checks.training.learning_rate_too_high import SYMPTOMS, LearningRateTooHigh
from netdoctor.checks.training.lr_trials import Rescue, rescue, works
from netdoctor.checks.training.optimizer_line import first_source
from netdoctor.checks.training.step_size import divides, scaled_down
from netdoctor.checks.training.update_ratios import medians
from netdoctor.checks.units.liveness import died
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, SourceLine, Stat
from netdoctor.trend import judge


@dataclass(frozen=True)
class AccumulationScaling(Check):
    """Gradients of several backward calls add up for one step, the loss is not divided, and the step overshoots.

    What it is: `.grad` holds the sum over the accumulated batches, not the mean that the learning rate is meant for.
    Why it hurts: each step is as many times too large as there are backward calls in it.
    How it is decided: at least 4 backward calls of one loss per optimizer step, as regular as a cycle, and nothing
    scales the loss down before backward. Training does not work, and either a rate as many times lower trains on a copy, or
    (without trials) half of the weight matrices change by more than a tenth per step and would not if it were divided;
    or it learns, but updates have killed half of the units of a rectifier.
    When it stays silent: a loss that is divided; a training that learns; Adam and other optimizers that divide by the
    size of the gradient; gradients that are clipped; closures; several different losses.
    Fix: divide the loss by the number of backward calls per step.
    Sources: advice A6 (divide gradients by the batch size); PyTorch's notes on gradient accumulation.
    """

    name = "accumulation-scaling"
    needs = frozenset({Stat.RMS})
    arms = frozenset({"trial/control", "trial/lr x0.1", "trial/lr x0.01"})
    explains = frozenset(SYMPTOMS.split()) | {"learning-rate-too-high", "loss-sum-reduction"}

    least: float = 3.5  # backward calls per step: fewer, and the step is within what a learning rate has to spare
    reach: float = 2.5  # a trial's rate may be this many times lower than what the division comes to
    gain: float = 0.3  # of the loss in a trial, as in learning-rate-too-high
    stuck: float = 0.1  # of the loss in the control arm, as there
    ratio: float = 0.1  # update per step and weight; a hundred times what is healthy (CS231n)

    def judge(self, recording: Recording) -> Iterator[Finding]:
        cycle = recording.counts.get("backward", 0) / max(1, recording.counts.get("step", 0))
        one = len(recording.losses) == len(recording.optimizers) == 1 and not recording.facts.get("closure")
        scaled = any(scaled_down(graph) for graph in graphs(recording)) or not graphs(recording)
        if cycle < self.least or scaled or not one or divides(recording):
            return
        trend = judge(recording)
        found = None if works(trend, LearningRateTooHigh.learning) else self._rescue(recording, cycle)
        hurt = outcome.hurt(trend)
        untried = hurt and "trial/control" not in recording.arms and self._overshoots(recording, cycle)
        if found or untried or (not hurt and died(recording)):
            yield self._finding(round(cycle), found, recording)

    def _rescue(self, recording: Recording, cycle: float) -> Rescue | None:
        near = [factor for factor in ("0.1", "0.01") if float(factor) * cycle * self.reach >= 1]
        return next(filter(None, (rescue(recording, (factor,), self.gain, self.stuck) for factor in near)), None)

    def _overshoots(self, recording: Recording, cycle: float) -> bool:
        ratios = sorted(medians(recording).values())
        return bool(ratios) and self.ratio < ratios[len(ratios) // 2] < self.ratio * cycle

    def _finding(self, cycle: int, found: Rescue | None, recording: Recording) -> Finding:
        source = first_source(recording, "backward")
        tried = "" if found is None else f" On a copy, a rate of {found.lr:g} in place of {found.old:g} trains."
        return Finding(
            self.name,
            f"the gradients of {cycle} backward calls are added up for each step, and the loss is not divided",
            Severity.WARNING,
            f"Each step is {cycle} times that of the mean loss.{tried} {outcome.words(judge(recording))}",
            Location.at(source, step=0),
            (Evidence("backward calls per optimizer step", cycle, ">", self.least),),
            (Fix("divide-loss", "Divide the loss by them.", _divided(source, cycle), Reach.RUN),),
            Certainty.INFERRED if found is None else found.certainty,
            first_step=0,
            share=1.0,
        )


def _divided(source: SourceLine | None, cycle: int) -> str:
    text = source.text if source is not None else ""
    return f"({text.partition('.backward')[0].split(';')[-1].strip() or 'loss'} / {cycle}).backward()"
