"""The check `lr-decays-too-fast`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, constant_loss, harm
from netdoctor.checks.training.decay import Decay, Loss, decay, loss_of
from netdoctor.checks.training.optimizer_line import variable
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Event, Recording


@dataclass(frozen=True)
class LrDecaysTooFast(Check):
    """The learning rate came to nothing while there was still much to learn.

    What it is: a schedule multiplies the rate down long before the end, most often as it was made for epochs and is
    stepped per batch.
    Why it hurts: from then on the weights stand still, and the rest of the run is wasted.
    How it is decided: the recorded rate falls under 1 % of its highest value for good, with at least 30 % of the run
    still to come; the loss is not at its floor and falls no more from there; and while the rate was alive (above a
    tenth) it was falling so fast that the rest of the run would have lowered it by a fifth, or it was too short to tell.
    An error when the loss is no better than that of a constant prediction.
    When it stays silent: warm-up; cosine, one-cycle and linear schedules, which come to nothing at the end of the run;
    restarts; a loss that had settled before the rate was lowered.
    Fix: step the schedule once per epoch, or a factor that reaches a tenth at the end of the run.
    Sources: advice B8 and the story under B (0.9995 per step was too fast); PyTorch's schedulers, which count calls.
    """

    name = "lr-decays-too-fast"
    explains = frozenset(
        {"loss-not-decreasing", "learning-rate-too-low", "cannot-overfit-tiny-batch", "lost-updates", "underfitting"}
    )

    low: float = 0.01  # of the highest rate: such updates add up to nothing in a run of this length
    left: float = 0.3  # of the run: cosine is under 1 % for its last 6 %, one-cycle for its last 10 %
    floor: float = 0.1  # of the start or a constant prediction: there is little left to learn
    premature: float = 0.5  # of the same, where the rate died before a trend could be seen
    promise: float = 0.2  # of the loss at the end: what the rest of the run would have lowered it by
    moving: float = 0.05  # of the loss when the rate came to nothing: it still goes on falling

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found, series = decay(recording, self.low), recording.loss
        if found is None or series is None or found.left < self.left:
            return
        state = harm(recording).state
        loss = loss_of(series, found)
        if loss is not None and state is not State.UNKNOWN and self._cut_short(loss, recording):
            yield self._finding(found, loss, state, recording)

    def _cut_short(self, loss: Loss, recording: Recording) -> bool:
        constant = constant_loss(recording)
        base = min(loss.start, constant) if math.isfinite(constant) else loss.start
        floor = self.premature if math.isinf(loss.promised) else self.floor
        stopped = loss.then - loss.end <= self.moving * abs(loss.then)
        return stopped and base > 0 and loss.end > floor * base and loss.promised >= self.promise * loss.end

    def _finding(self, found: Decay, loss: Loss, state: State, recording: Recording) -> Finding:
        call = next((e for e in recording.events if e.kind == "scheduler" and _is_step(e)), None)
        each = recording.counts.get("scheduler", 0) >= 0.9 * recording.steps
        says = f"It is multiplied by {found.factor:.4g} per step, and was halved by step {found.half}. "
        says += f"The loss stood at {loss.then:.4g} then and ends at {loss.end:.4g}."
        if call is not None and each:
            says += " The scheduler is stepped after every batch; most are made to be stepped once per epoch."
        return Finding(
            self.name,
            f"the learning rate decays too fast: under 1 % of {found.top:g} from step {found.low} of {found.last + 1} on",
            Severity.ERROR if state is State.HURT else Severity.WARNING,
            says,
            Location.at(None if call is None else call.source, step=found.low),
            (Evidence("share of the run with next to no learning rate", 100 * found.left, "≥", 100 * self.left, "%"),),
            (self._fix(found, call if each else None, recording),),
            first_step=found.half,
            share=found.left,
        )

    def _fix(self, found: Decay, call: Event | None, recording: Recording) -> Fix:
        factor = 0.1 ** (1 / max(1, found.last - found.top_step))
        name = variable(recording)
        slower = f"torch.optim.lr_scheduler.ExponentialLR({name}, gamma={factor:.6f})  # per step: a tenth at the end"
        if call is None or call.source is None:
            return Fix("slower-decay", "Decay more slowly.", f"scheduler = {slower}", Reach.RUN)
        code = f"# after the loop over the batches:\n{call.source.text}\n# or, per batch: scheduler = {slower}"
        return Fix("slower-decay", "Step the scheduler once per epoch, or decay more slowly.", code, Reach.RUN)


def _is_step(event: Event) -> bool:
    """A call by the script itself; the line that builds a scheduler steps it as well."""
    return event.source is not None and ".step(" in event.source.text
