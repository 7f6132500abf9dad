"""Learning rates of an optimizer's groups that were overwritten by one for all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.training.optimizer_line import assigned, variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Event, Optimizer, Recording

APART = 2.0  # times: rates of groups that differ by less are hardly meant to differ
_CYCLES = frozenset({"OneCycleLR", "CyclicLR"})  # they take one rate for all, or a list
_MAX_LR = re.compile(r"\bmax_lr\s*=\s*[^,()\[\]]+")


@dataclass(frozen=True)
class GroupRatesOverwritten(Check):
    """The groups of an optimizer were given learning rates of their own, and all of them train with the same one.

    What it is: `OneCycleLR(optimizer, max_lr=0.5)` sets that rate for every group, as does a loop over `param_groups` that
    writes one number into each; the rates that the groups were built with are gone.
    Why it hurts: a pretrained body that was to move slowly is trained at the rate of a new head, and forgets what it knew.
    How it is decided: the rates with which the optimizer was built differ twofold or more between its groups; at its first
    step all groups had one and the same. An error where the loss shows that training is hurt or slow, else a warning.
    When it stays silent: rates that begin at 0 (a warm-up); groups that were added or taken away in between.
    Fix: a list of rates, one for each group.
    Sources: PyTorch's documentation of OneCycleLR ("max_lr: float or list").
    """

    name = "group-rates-overwritten"
    explains = frozenset(
        {"learning-rate-too-high", "learning-rate-too-low", "loss-diverging", "loss-not-decreasing", "unstable-loss"}
        | {"dead-relu", "underfitting"}
    )

    apart: float = APART  # times, between the largest and the smallest rate

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for optimizer in recording.optimizers:
            if overwritten(optimizer, self.apart):
                yield self._finding(optimizer, recording)

    def _finding(self, optimizer: Optimizer, recording: Recording) -> Finding:
        state = harm(recording)
        built = [event for event in recording.events if event.kind == "scheduler built" and event.detail in _CYCLES]
        cycle = built[0] if len(built) == 1 else None
        rates = " and ".join(f"{rate:.4g}" for rate in dict.fromkeys(optimizer.rates))
        says = f"{optimizer.type} was built with a rate for each of its groups, {rates}; "
        if cycle is not None:
            says += f"{cycle.detail} with one rate for all of them overwrites these."
        else:
            says += "at its first step something had written one rate into all of them."
        return Finding(
            self.name,
            f"the learning rates of the groups, {rates}, were overwritten: all begin with {optimizer.lr:.4g}",
            Severity.ERROR if state.state in {State.HURT, State.SLOW} else Severity.WARNING,
            f"{says} {state.words}".strip(),
            Location.at(cycle.source if cycle is not None else optimizer.source),
            (
                Evidence(
                    "largest over smallest rate that the groups were built with", _apart(optimizer), "≥", self.apart
                ),
            ),
            (_fix(optimizer, cycle, recording),),
            first_step=0,
            share=1.0,
        )


def overwritten(optimizer: Optimizer, apart: float = APART) -> bool:
    """Whether the groups were built with rates of their own, and had one for all at the first step."""
    used = [group.get("lr") for group in optimizer.groups]
    if len(used) != len(optimizer.rates) or len(used) < 2 or _apart(optimizer) < apart:
        return False
    return len(set(used)) == 1 and isinstance(used[0], int | float) and used[0] > 0


def _apart(optimizer: Optimizer) -> float:
    least, most = min(optimizer.rates), max(optimizer.rates)
    return most / least if least > 0 else math.inf if most > 0 else 1.0


def _fix(optimizer: Optimizer, cycle: Event | None, recording: Recording) -> Fix:
    rates = ", ".join(f"{rate:.6g}" for rate in optimizer.rates)
    if cycle is not None:
        text = "" if cycle.source is None else _MAX_LR.sub(f"max_lr=[{rates}]", cycle.source.text)
        code = text if f"[{rates}]" in text else f"max_lr=[{rates}]"
        return Fix("keep-group-rates", f"Give {cycle.detail} a list, one rate for each group.", code, Reach.RUN)
    name = assigned(optimizer) or variable(recording)
    code = f"for group, rate in zip({name}.param_groups, [{rates}]):\n    group['lr'] = rate * factor"
    says = "Scale the rate that each group was built with, by what the schedule says (`factor`)."
    return Fix("keep-group-rates", says, code, Reach.RUN)
