"""The check `schedule-too-long`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from netdoctor.check import Check
from netdoctor.checks.training.lr_trials import rescue
from netdoctor.checks.training.optimizer_line import variable
from netdoctor.checks.training.slower_decay import scheduler_call
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Event, Recording

_WARMS_UP = frozenset({"OneCycleLR", "LinearLR"})  # they begin with a fraction of the rate, which is all there is then


@dataclass(frozen=True)
class ScheduleTooLong(Check):
    """The schedule's length is counted in batches, but it is stepped once per epoch: it has hardly begun when the run ends.

    What it is: a `OneCycleLR` with `total_steps`, or a cosine with `T_max`, of as many steps as the whole training has, or
    a warm-up of some hundred steps (`LambdaLR`, `LinearLR`, transformers' schedules), whose `step()` stands after the loop
    over the batches, or is left to a trainer that calls it once per epoch.
    Why it hurts: the learning rate stays where the schedule begins: a warm-up never comes to the rate that was meant (a
    25th of it, as OneCycleLR has it), and nothing is annealed at the end.
    How it is decided: by counting: the schedule is as long as the run has optimizer steps, to 2 %, and was stepped in
    less than a fifth of them, and so came through less than a fifth of its length. Or its warm-up, as long as the
    schedule's own function says when it is asked, was to take no more calls than there were optimizer steps, and came
    through less than a fifth. An error where it warms up. Where 10 or 100 times the rate trains on a copy, and the
    script's own does not, that is the proof.
    When it stays silent: runs that were cut short; several schedules, those without a length, and functions that do more
    than compute, which are not asked; under 20 steps; a schedule that is as long as the epochs are many.
    Fix: `scheduler.step()` right after `optimizer.step()`; in Lightning `{"scheduler": ..., "interval": "step"}`.
    Sources: PyTorch's documentation of OneCycleLR ("changes the learning rate after every batch"); Lightning's of
    `configure_optimizers`, where the interval is an epoch unless said otherwise.
    """

    name = "schedule-too-long"
    arms = frozenset({"trial/control", "trial/lr x10", "trial/lr x100"})
    explains = frozenset({"learning-rate-too-low", "loss-not-decreasing", "cannot-overfit-tiny-batch", "lost-updates"})

    near: float = 0.02  # of the run's steps: a last batch that is dropped, no coincidence
    share: float = 0.2  # of its length: beyond, a schedule has done some of its work
    steps: int = 20  # a shorter schedule may be meant in epochs
    gain: float = 0.3  # of the loss, at a higher rate on a copy,
    stuck: float = 0.1  # and at the script's own: as for a learning rate that is too low

    def judge(self, recording: Recording) -> Iterator[Finding]:
        built = [event for event in recording.events if event.kind == "scheduler built"]
        count, inside = (recording.counts.get(kind, 0) for kind in ("scheduler built", "scheduler inside"))
        calls, steps = recording.counts.get("scheduler", 0), recording.steps
        if not calls or count - inside != 1 or recording.header.ended != "finished":
            return
        length = built[0].value
        whole = count == 1 and length >= self.steps and abs(length - steps) <= self.near * steps
        if whole and calls < self.share * length:
            yield self._finding(built[0], calls, recording)
        elif (warm := self._unfinished(recording, calls)) is not None:
            kind = next((event.detail for event in built if event.source == warm.source), built[0].detail)
            yield self._finding(replace(warm, detail=kind), calls, recording, float(warm.detail))

    def _unfinished(self, recording: Recording, calls: int) -> Event | None:
        """The only warm-up, where it was to be over within the optimizer steps, and has hardly begun."""
        found = [event for event in recording.events if event.kind == "warm-up"]
        hardly = len(found) == 1 and calls < self.share * min(found[0].value, recording.steps)
        return found[0] if hardly and self.steps <= found[0].value <= recording.steps else None

    def _finding(self, built: Event, calls: int, recording: Recording, top: float = math.nan) -> Finding:
        length, call, warms = int(built.value), scheduler_call(recording), built.kind == "warm-up"
        own = call.source if call is not None and call.source is not None and ".step(" in call.source.text else None
        rates = recording.scalars.get("lr")
        now = f" The learning rate went from {rates.values[0]:.3g} to {rates.values[-1]:.3g}." if rates else ""
        step = own.text if own is not None else "scheduler.step()"
        code = f"{variable(recording)}.step()\n{step}  # in the loop over the batches"
        if own is None:  # a trainer steps it
            code = 'return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}'
        made = f"{'warms up over' if warms else 'is made for'} {length}"
        now += f" It is to reach {top:.3g}." if warms else ""
        done = Evidence(f"calls of a scheduler that {made}", calls, "<", self.share * length)
        higher = rescue(recording, ("10", "100"), self.gain, self.stuck)
        trial = higher.fix(recording, "raise-learning-rate").trial if higher else None
        says = "Step the schedule after every optimizer step."
        says += (
            f" On a copy it trains at {higher.lr:.3g}, {higher.lr / higher.old:g} times its rate now." if higher else ""
        )
        fix = Fix("schedule-per-step", says, code, Reach.RUN, trial)
        return Finding(
            self.name,
            f"the schedule {made} steps, and was stepped {calls} times in the {recording.steps} of the run",
            Severity.ERROR if warms or built.detail in _WARMS_UP else Severity.WARNING,
            f"{built.detail} counts calls of its step(); they come once per epoch here, so that it has hardly begun.{now}",
            Location.at(own or built.source),
            (done, *(higher.evidence(self.gain, self.stuck) if higher else ())),
            (fix,),
            Certainty.PROVEN if higher else Certainty.MEASURED,
            first_step=0,
            share=1 - calls / length,
        )
