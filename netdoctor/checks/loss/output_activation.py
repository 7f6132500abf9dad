"""An activation on the output that the loss does not expect, or that cannot reach the targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import POISSON, Comparison, comparisons, differences, line, place
from netdoctor.checks.loss.lines import told, without
from netdoctor.checks.loss.output_ranges import OTHERS_SAY, RANGES, conflict, over_the_run
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.checks.signal import outcome
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording
from netdoctor.trend import judge

REMOVE = "Leave the last activation out."


@dataclass(frozen=True)
class OutputActivation(Check):
    """An activation after the last layer keeps the output away from what the loss asks for.

    What it is: a ReLU, tanh or sigmoid on the scores of a loss that needs scores of any size (cross_entropy, BCE with
    logits, a Poisson loss of logarithms); an output range that does not hold the targets of a regression; a softmax
    over a single unit, always 1.
    Why it hurts: the targets cannot be reached; a ReLU that ends below 0 has no gradient at all.
    How it is decided: on the captured step. The activation made what the loss is given, with nothing but reshapes in
    between; for a regression, targets lie outside of its range by more than a quarter of their standard deviation.
    When it stays silent: an activation whose range holds the targets; sigmoid before BCELoss; activations inside of the
    model. A ReLU before cross_entropy in a training that learns is a warning.
    Fix: leave the last activation out.
    Sources: UMLAUT and advice B3 (no activation on the output layer).
    """

    name = "output-activation"
    explains = EVERYTHING

    outside: float = 0.25  # standard deviations of the target: a few noisy targets past the end do no harm

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in (*comparisons(recording), *differences(recording)):
            reason = conflict(comparison, over_the_run(recording, comparison.target), self.outside)
            if reason is not None and comparison.prediction.requires_grad:
                yield self._finding(recording, comparison, *reason)

    def _finding(self, recording: Recording, comparison: Comparison, reason: str, evidence: Evidence) -> Finding:
        maker = comparison.maker
        assert maker is not None
        source = line(recording, maker)
        low, high = RANGES[maker.name]
        mild = maker.name in {"relu", "softplus"} and comparison.operation.name in {*OTHERS_SAY, POISSON}
        target = over_the_run(recording, comparison.target)
        learns = mild and outcome.learns(judge(recording))
        return Finding(
            self.name,
            f"{maker.name} on the output, in {place(maker)}, {reason}",
            Severity.WARNING if learns else Severity.ERROR,
            f"{maker.name} gives numbers between {low:g} and {high:g}; here {comparison.prediction.low:.3g} to "
            f"{comparison.prediction.high:.3g}, against targets from {target.low:.3g} to {target.high:.3g}.",
            Location.at(source, maker.module or None, maker.name, step=0),
            (evidence,),
            (
                *_rates(recording, comparison),
                Fix("remove-activation", REMOVE, without(source, maker.name), Reach.MODEL),
            ),
            first_step=0,
            share=1.0,
        )


def _rates(recording: Recording, comparison: Comparison) -> Iterator[Fix]:
    """Of a Poisson loss: it can be told that it is given rates, and no logarithms."""
    if comparison.operation.name == POISSON:
        known = told(line(recording, comparison.operation), "log_input", "False")
        code = known or "criterion = nn.PoissonNLLLoss(log_input=False)"
        yield Fix("loss-of-rates", "Tell the loss that it is given rates, not their logarithms.", code, Reach.MODEL)
