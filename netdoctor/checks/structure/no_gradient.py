"""Trainable parameters that never get a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.gradients import (
    copies,
    ever_had_gradient,
    listed,
    loose_end,
    modules,
    owned,
    reached_anywhere,
)
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Stat
from netdoctor.trend import judge


@dataclass(frozen=True)
class NoGradient(Check):
    """Parameters that require a gradient, and that an optimizer holds, never got one.

    What it is: a layer that is built and not used, or whose result is computed and then dropped.
    Why it hurts: it never learns; when it was meant to take part, the model is smaller than it looks.
    How it is decided: no gradient in any sampled step, and no captured loss reaches it. A warning where the layer ran
    in the captured step, its result went nowhere, and training is hurt; else advice.
    When it stays silent: frozen parameters, copies of trained ones (target networks), modules of other branches or
    phases that got a gradient at any time; parameters in no optimizer; runs of fewer than 8 steps.
    Fix: use it, or take it out.
    Sources: Lightning#21794, pytorch#57776 (which parameters were unused, by name; peers.md d1).
    """

    name = "no-gradient"
    needs = frozenset({Stat.RMS})
    explains = NO_LEARNING | (NO_SIGNAL - {"no-gradient"})

    steps: int = 8  # all of the first 8 steps are sampled, so an alternating phase shows

    def judge(self, recording: Recording) -> Iterator[Finding]:
        reach = reached_anywhere(recording)
        if recording.steps < self.steps or not reach:
            return
        trainable = [p for p in recording.parameters.values() if p.requires_grad and owned(recording, p)]
        silent = [p.name for p in trainable if p.name not in reach and not ever_had_gradient(recording, p.name)]
        silent = [name for name in silent if recording.parameters[name].module_type]
        if not silent or copies(recording, silent):
            return
        ends = [end for graph in graphs(recording) if (end := loose_end(graph, silent)) is not None]
        where, ran = modules(recording, silent), bool(ends)
        layer = recording.layer_at(where[0])
        source = line(recording, ends[0]) if ends else layer.source if layer is not None else None
        how = "ran, but nothing that the loss is made of uses the result" if ran else "did not run in the captured step"
        grave = ran and outcome.hurt(judge(recording))
        yield Finding(
            self.name,
            f"{len(silent)} of {len(trainable)} parameters never got a gradient: {listed(where)}",
            Severity.WARNING if grave else Severity.ADVICE,
            f"{listed(where)} {how}, so the optimizer never changes {'it' if len(where) == 1 else 'them'}.",
            Location.at(source, ends[0].module or where[0] if ends else where[0], step=0),
            (Evidence("parameters without a gradient", len(silent), ">", 0.0),),
            (Fix("use-or-remove", "Use the result in the model's output, or take the layer out.", "", Reach.MODEL),),
            first_step=0,
            places=tuple(silent),
            share=len(silent) / len(trainable),
        )
