"""A logarithm of a softmax or sigmoid, taken in two steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line, maker, place
from netdoctor.checks.loss.logarithms import fused
from netdoctor.checks.numerics.birth import birth
from netdoctor.checks.signal import outcome
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording
from netdoctor.trend import judge

FUSED = {"softmax": "log_softmax", "sigmoid": "logsigmoid"}


@dataclass(frozen=True)
class SoftmaxThenLog(Check):
    """log(softmax(x)) or log(sigmoid(x)) instead of the one function that computes both.

    What it is: the two steps are exact on paper, but in floating point a small probability is rounded to 0 first.
    Why it hurts: log(0) is -inf, and its gradient NaN; well before that the gradient loses its digits.
    How it is decided: on the operations of the captured step: a logarithm of what a softmax or sigmoid made, with
    nothing but reshapes in between, in the gradient's way. A warning where the training does not learn, or where a
    probability is so small that float32 has lost it; else advice.
    When it stays silent: a small number added, or a clamp, before the logarithm; log_softmax and logsigmoid; where the
    first NaN or Inf of the training was made in that line, which is then the finding.
    Fix: log_softmax, logsigmoid.
    Sources: PyTorch's documentation of log_softmax; advice E-A1.
    """

    name = "softmax-then-log"
    explains = frozenset(
        {
            "non-finite-activation",
            "non-finite-gradient",
            "non-finite-parameter",
            "unstable-loss",
            "learning-rate-too-high",
        }
    )

    lost: float = 1e-30  # float32's smallest normal number is 1e-38; a few steps later such a probability is 0

    def judge(self, recording: Recording) -> Iterator[Finding]:
        seen: set[tuple[int, str, str, int]] = set()
        for graph in graphs(recording):
            for operation in graph.named_behind({"log"}):
                first = maker(graph, operation.inputs[0]) if operation.inputs else None
                if first is None or first.name not in FUSED or operation.identity in seen:
                    continue
                seen.add(operation.identity)
                if _gave_birth(recording, operation):
                    continue  # non-finite-activation names it, with a fix of its own
                if graph.values[operation.inputs[0]].requires_grad:
                    yield self._finding(recording, graph, operation, first)

    def _finding(self, recording: Recording, graph: StepGraph, log: Operation, first: Operation) -> Finding:
        source, smallest = line(recording, log), graph.values[log.inputs[0]].low
        harmful = smallest < self.lost or outcome.hurt(judge(recording))
        one = FUSED[first.name]
        code = fused(source, line(recording, first), first.name, one)
        return Finding(
            self.name,
            f"log of {first.name} in {place(log)} is taken in two steps",
            Severity.WARNING if harmful else Severity.ADVICE,
            f"The smallest probability is {smallest:.2g}. Once it is rounded to 0, the logarithm is -inf and the gradient "
            f"NaN; {one} does both in one step and cannot.",
            Location.at(source, log.module or None, log.name, step=0),
            (Evidence("smallest probability", smallest, "<" if smallest < self.lost else "≥", self.lost),),
            (Fix(one.replace("_", "-"), f"Use {one}.", code, Reach.MODEL),),
            first_step=0,
        )


def _gave_birth(recording: Recording, log: Operation) -> bool:
    """Whether the first NaN or Inf of the training was made by this very logarithm. In its backward pass it is the two steps that
    make it, of a probability that the loss never asked for."""
    origin, source = birth(recording), line(recording, log)
    at = None if origin is None or origin.phase != "forward" else origin.source
    return at is not None and source is not None and (at.file, at.line) == (source.file, source.line)
