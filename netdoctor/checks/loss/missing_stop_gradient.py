"""The check `missing-stop-gradient`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.attraction import bootstraps, only_attracts
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.loss.trained_targets import Pair, all_pairs, detached
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import StepGraph
from netdoctor.recording import Recording

COLLAPSES = (
    "The same weights make both sides and nothing keeps them apart: a constant output has the lowest loss there is."
)
CHASES = (
    "The target holds the model's own estimate of another input: its gradient pulls that estimate to the prediction."
)


@dataclass(frozen=True)
class MissingStopGradient(Check):
    """The loss compares the model with a target that it makes itself, and the gradient flows into the target too.

    What it is: a second view's embedding (BYOL, SimSiam) or a bootstrapped value (`reward + gamma * V(next state)`)
    without `.detach()`.
    Why it hurts: embeddings collapse to a constant, with a beautiful loss; value learning turns into the residual
    gradient, which is slow and finds other values.
    How it is decided: on the captured step both sides of a comparison get a gradient, from the same weights in different
    passes. Either the whole loss consists of such comparisons, averaged, summed or scaled, so that a constant output
    makes it lowest; or the target adds data to the model's discounted output.
    When it stays silent: detached or no-grad targets; a supervised, a contrastive or a variance term beside it (R-Drop,
    VICReg, triplets); residuals of differential equations, where one pass makes both sides.
    Fix: `.detach()` on the target, in its own line.
    Sources: Grill et al. 2020 (BYOL), Chen and He 2021 (SimSiam, section 4.1: without stop-gradient it collapses at
    once); Sutton and Barto, 11.5 (semi-gradient and residual gradient).
    """

    name = "missing-stop-gradient"
    explains = NO_LEARNING | NO_SIGNAL

    passes: int = 1  # of the model that only the target uses, at least: else it is one pass with two results

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for graph in graphs(recording):
            found = [pair for pair in all_pairs([graph]) if self._own_pass(pair)]
            why = self._why(graph, found)
            if why:
                yield self._finding(recording, found[0], why)
                return

    def _own_pass(self, pair: Pair) -> bool:
        """Whether the target has a pass of its own through weights that the prediction uses as well."""
        shared = pair.weights & pair.target_weights
        alone = [o for o in pair.alone() if shared & pair.used([o])]
        return len(alone) >= self.passes

    def _why(self, graph: StepGraph, found: list[Pair]) -> str:
        if found and any(bootstraps(pair) for pair in found):
            return CHASES
        return COLLAPSES if found and only_attracts(graph, found) else ""

    def _finding(self, recording: Recording, pair: Pair, why: str) -> Finding:
        operation = pair.operation
        code = detached(operation) if why is COLLAPSES or pair.known_target else "target = target.detach()"
        return Finding(
            self.name,
            f"the target of {operation.name} is made by the trained model itself, and is not detached",
            Severity.WARNING,
            why,
            Location.at(line(recording, operation), None, operation.name, step=0),
            (Evidence("weights that both sides use", len(pair.weights & pair.target_weights), ">", 0.0),),
            (Fix("detach-target", "Stop the gradient at the target.", code, Reach.RUN),),
            first_step=0,
            share=1.0,
        )
