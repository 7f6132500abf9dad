"""The check `resumed-without-optimizer-state`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import first_source, variable
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

STATEFUL = ("momentum", "betas", "beta1", "eps")


@dataclass(frozen=True)
class ResumedWithoutOptimizerState(Check):
    """A checkpoint was loaded, and only the model took its state from it.

    What it is: Adam's averages and SGD's momentum start at zero again, and Adam's warm-up of them too.
    Why it hurts: the first steps after each resumption are larger and noisier than those before: the loss jumps.
    How it is decided: a loaded checkpoint holds the state of an optimizer that has stepped, a model loaded its weights
    before the first step, and no optimizer loaded any. Advice only.
    When it stays silent: checkpoints of weights alone (pretrained models); optimizers without a state (plain SGD).
    Fix: `optimizer.load_state_dict(checkpoint["optimizer"])`.
    Sources: PyTorch's tutorial on saving and loading a general checkpoint; advice B1.
    """

    name = "resumed-without-optimizer-state"

    steps: int = 1  # of the optimizer, at least: a script that only evaluates has no use for it

    def judge(self, recording: Recording) -> Iterator[Finding]:
        facts = recording.facts
        held = bool(facts.get("optimizer_state_in_checkpoint")) and bool(facts.get("pretrained"))
        stateful = [o for o in recording.optimizers if any(g.get(key) for g in o.groups for key in STATEFUL)]
        if not held or facts.get("optimizer_state_loaded") or not stateful or stateful[0].steps < self.steps:
            return
        source = first_source(recording, "load_state")
        yield Finding(
            self.name,
            f"the run was resumed without the state of {stateful[0].type}",
            Severity.ADVICE,
            "The checkpoint holds it, and it was not loaded: its averages start at zero again.",
            Location.at(source, step=0),
            (Evidence("optimizer states loaded", 0.0, "<", 1.0),),
            (
                Fix(
                    "load-optimizer",
                    "Load both.",
                    f'{variable(recording)}.load_state_dict(checkpoint["optimizer"])',
                    Reach.RUN,
                ),
            ),
            Certainty.INFERRED,
            first_step=0,
        )
