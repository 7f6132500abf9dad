"""The fix of a learning rate that comes to nothing too early, in the script's own line where it steps a scheduler."""

from __future__ import annotations

from netdoctor.checks.training.decay import Decay
from netdoctor.checks.training.optimizer_line import variable
from netdoctor.finding import Fix, Reach, Trial
from netdoctor.recording import Event, Recording


def scheduler_call(recording: Recording) -> Event | None:
    """The script's own first call of a scheduler's step; the line that builds a scheduler steps it as well."""
    calls = (event for event in recording.events if event.kind == "scheduler" and event.source is not None)
    return next((event for event in calls if event.source is not None and ".step(" in event.source.text), None)


def per_batch(recording: Recording) -> bool:
    """Whether a scheduler is stepped with (nearly) every optimizer step."""
    return recording.counts.get("scheduler", 0) >= 0.9 * recording.steps


def slower_decay(found: Decay, recording: Recording, trial: Trial | None) -> Fix:
    """Once per epoch where the call per batch is known, else a factor that reaches a tenth at the end of the run."""
    factor = 0.1 ** (1 / max(1, found.last - found.top_step))
    name, call = variable(recording), scheduler_call(recording) if per_batch(recording) else None
    slower = f"torch.optim.lr_scheduler.ExponentialLR({name}, gamma={factor:.6f})  # per step: a tenth at the end"
    if call is None or call.source is None:
        return Fix("slower-decay", "Decay more slowly.", f"scheduler = {slower}", Reach.RUN, trial)
    code = f"# after the loop over the batches:\n{call.source.text}\n# or, per batch: scheduler = {slower}"
    return Fix("slower-decay", "Step the scheduler once per epoch, or decay more slowly.", code, Reach.RUN, trial)
