"""The check `lr-decays-too-fast`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, constant_loss, harm
from netdoctor.checks.training.decay import Decay, Loss, decay, loss_of
from netdoctor.checks.training.revived import AS_IT_ENDED, REVIVED, Revival, revival, why_not
from netdoctor.checks.training.slower_decay import per_batch, scheduler_call, slower_decay
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Location, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class LrDecaysTooFast(Check):
    """The learning rate came to nothing while there was still much to learn.

    What it is: a schedule multiplies the rate down long before the end, most often as it was made for epochs and is
    stepped per batch, or multiplies what it has multiplied before (lr *= gamma ** epoch).
    Why it hurts: from then on the weights stand still, and the rest of the run is wasted.
    How it is decided: the recorded rate falls under 1 % of its highest value for good, with at least 30 % of the run
    still to come; the loss is not at its floor and falls no more from there; and by experiment: the trained model goes
    on over some captured batches at a third of its highest rate, which then falls to nothing, and as it ended. The
    living rate must take 5 % off the loss on other captured batches. Where that could not run, or nothing was learned at
    all: while the rate was alive (above a tenth) the loss fell so fast that the rest of the run would have lowered it by
    a fifth, or it was too short to tell.
    An error when the loss is no better than that of a constant prediction.
    When it stays silent: warm-up; cosine, one-cycle and linear schedules, which come to nothing at the end of the run;
    restarts; a loss that had settled before the rate was lowered.
    Fix: step the schedule once per epoch, or a factor that reaches a tenth at the end of the run.
    Sources: advice B8 and the story under B (0.9995 per step was too fast); PyTorch's schedulers, which count calls.
    """

    name = "lr-decays-too-fast"
    arms = frozenset({AS_IT_ENDED, REVIVED})
    explains = frozenset(
        {"loss-not-decreasing", "learning-rate-too-low", "cannot-overfit-tiny-batch", "lost-updates", "underfitting"}
    )

    low: float = 0.01  # of the highest rate: such updates add up to nothing in a run of this length
    left: float = 0.3  # of the run: cosine is under 1 % for its last 6 %, one-cycle for its last 10 %
    floor: float = 0.1  # of the start or a constant prediction: there is little left to learn
    premature: float = 0.5  # of the same, where the rate died before a trend could be seen
    promise: float = 0.2  # of the loss at the end: what the rest of the run would have lowered it by
    moving: float = 0.05  # of the loss when the rate came to nothing: it still goes on falling
    gain: float = 0.05  # of the held-out loss: annealed models gained under 1 %, those cut short 6 to 70 %

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        found, series = decay(recording, self.low), recording.loss
        if found is None or series is None or found.left < self.left:
            return
        state, loss, revived = harm(recording).state, loss_of(series, found), revival(recording)
        if loss is None or state is State.UNKNOWN or not loss.end > self.floor * _base(loss, recording) > 0:
            return
        if loss.then - loss.end > self.moving * abs(loss.then):
            return
        if revived and revived.gain < self.gain and state is State.HURT:
            revived = None  # nothing was learned at all: another fault may hold the trial back too
        if revived.gain >= self.gain if revived else self._promising(loss, recording):
            yield self._finding(found, loss, state, recording, revived)
        elif revived is None and loss.promised >= self.gain * loss.end:
            yield Abstention(self.name, why_not(recording))

    def _promising(self, loss: Loss, recording: Recording) -> bool:
        floor = self.premature if math.isinf(loss.promised) else self.floor
        return loss.end > floor * _base(loss, recording) and loss.promised >= self.promise * loss.end

    def _finding(self, found: Decay, loss: Loss, state: State, recording: Recording, trial: Revival | None) -> Finding:
        call = scheduler_call(recording)
        says = f"It is multiplied by {found.factor:.4g} per step, and was halved by step {found.half}. "
        says += f"The loss stood at {loss.then:.4g} then and ends at {loss.end:.4g}."
        if call is not None and per_batch(recording):
            says += " The scheduler is stepped after every batch; most are made to be stepped once per epoch."
        idle = Evidence("share of the run with next to no learning rate", 100 * found.left, "≥", 100 * self.left, "%")
        return Finding(
            self.name,
            f"the learning rate decays too fast: under 1 % of {found.top:g} from step {found.low} of {found.last + 1} on",
            Severity.ERROR if state is State.HURT else Severity.WARNING,
            f"{says} {trial.words}" if trial else says,
            Location.at(None if call is None else call.source, step=found.low),
            (idle, trial.evidence(self.gain)) if trial else (idle,),
            (slower_decay(found, recording, trial.trial(self.promise) if trial else None),),
            Certainty.PROVEN if trial else Certainty.MEASURED,
            first_step=found.half,
            share=found.left,
        )


def _base(loss: Loss, recording: Recording) -> float:
    """What there was to be learned: the loss at the start, or that of a constant prediction where that is lower."""
    constant = constant_loss(recording)
    return min(loss.start, constant) if math.isfinite(constant) else loss.start
