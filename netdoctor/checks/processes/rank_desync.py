"""Weights that must be the same in all processes, and are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class RankDesync(Check):
    """The processes of one data-parallel training hold different weights.

    What it is: DistributedDataParallel copies the weights once and averages gradients ever after, so that all processes hold
    the same model. Here they drifted apart.
    Why it hurts: each process trains a model of its own on its part of the data; the one that is saved has seen only that.
    How it is decided: by exact comparison of a projection of each parameter of the wrapped model over all processes, after
    every measured step; the difference is relative to the parameter's magnitudes.
    When it stays silent: fewer than `samples` differing steps at the end of the run, differences as small as rounding, a
    communication hook that averages only now and then, sharded weights, processes without DistributedDataParallel.
    Fix: call the wrapped model, not the one inside; change nothing of it by data that only one process has.
    Sources: PyTorch's notes on DistributedDataParallel; TrainCheck (OSDI 2025), whose BLOOM case took 15 days to be noticed.
    """

    name = "rank-desync"
    explains = frozenset({"rank-imbalance"})

    samples: int = 2  # measured steps in a row that differ, up to the last one: a difference that is mended is none
    difference: float = 1e-5  # relative: unlike hardware rounds sums of float32 unlike, and stays below this for long

    def judge(self, recording: Recording) -> Iterator[Finding]:
        facts = recording.facts
        by, count = float(facts.get("ranks_differ_by", 0.0)), int(float(facts.get("ranks_differ_samples", 0)))
        if count < self.samples or by <= self.difference:
            return
        step, parameter = int(float(facts.get("ranks_differ_step", 0))), str(facts.get("ranks_differ_parameter", ""))
        bypassed = not facts.get("ddp_calls")
        wrapped = next((e.source for e in recording.events if e.kind == "ddp" and e.source is not None), None)
        called = next((e.source for e in recording.events if e.kind == "backward" and e.source is not None), None)
        why = (
            "The loop calls the model inside of its DistributedDataParallel, so that gradients are never averaged."
            if bypassed
            else "Something changes the weights by what only one process has: other data, another seed, a step of its own."
        )
        yield Finding(
            self.name,
            f"the weights differ between {recording.header.ranks} processes, first in {parameter} after step {step}",
            Severity.ERROR,
            f"{why} Each process trains a model of its own.",
            Location.at(called if bypassed else wrapped, step=step),
            (Evidence("difference between processes, relative", by, ">", self.difference),),
            (_fix(bypassed),),
            first_step=step,
            share=float(facts.get("ranks_differ_share", 1.0)),
        )


def _fix(bypassed: bool) -> Fix:
    if bypassed:
        says = "Call the DistributedDataParallel model itself; only its forward pass arranges for averaged gradients."
        return Fix("call-wrapped-model", says, "output = model(x)  # the wrapped model, not model.module(x)", Reach.RUN)
    says = "Change weights only through averaged gradients, or broadcast what one process changed."
    code = "with torch.no_grad():\n    for p in model.parameters():\n        torch.distributed.broadcast(p, src=0)"
    return Fix("broadcast-weights", says, code, Reach.RUN)
