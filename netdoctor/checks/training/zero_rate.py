"""A learning rate that is 0 in every step: no trend is needed to tell that nothing is trained."""

from __future__ import annotations

import math

from netdoctor.checks.training.lr_trials import Rescue
from netdoctor.checks.training.optimizer_line import rewritten, setting
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Series

USUAL, USUAL_SGD = (
    1e-3,
    1e-2,
)  # torch.optim's defaults: Adam and its kin; SGD has 1e-3 there, and trains with ten times that
STEPS = 3  # a warm-up may begin with 0


def is_zero(recording: Recording) -> bool:
    """Whether every group of every optimizer had the rate 0 in all steps; not where a schedule may yet raise it."""
    rates = [series for name, series in recording.scalars.items() if name.split(" ")[0] == "lr"]
    waits = recording.facts.get("scheduler_never_stepped") or (
        recording.counts.get("scheduler") and recording.header.ended != "finished"
    )
    return bool(rates) and recording.steps >= STEPS and not waits and not any(map(_any, rates))


def _any(series: Series) -> bool:
    return bool((series.values != 0).any())  # NaN: an optimizer without a rate


def finding(name: str, recording: Recording, found: Rescue | None, places: tuple[str, ...]) -> Finding:
    """The finding, with the rate that a trial found, or the usual one."""
    lr = USUAL_SGD if recording.optimizers and recording.optimizers[0].type == "SGD" else USUAL
    says = f"Set a learning rate; {lr:g} is a usual start."
    fix = Fix("raise-learning-rate", says, rewritten(recording, lr, math.nan), Reach.RUN)
    line = setting(recording)
    written = (
        "" if line is None or "lr=0" in line.text.replace(" ", "") else " Where it is computed, it comes out as 0."
    )
    return Finding(
        name,
        "the learning rate is 0 in every step: nothing is trained",
        Severity.ERROR,
        f"Each step multiplies the gradient by 0, so no weight changes.{written}",
        Location.at(line, step=0),
        (Evidence("learning rate", 0.0, "≤", 0.0), *(found.evidence(0.0, 0.0) if found and found.few else ())),
        (fix if found is None else found.fix(recording, "raise-learning-rate"),),
        Certainty.MEASURED if found is None else found.certainty,
        first_step=0,
        places=places,
        share=1.0,
    )
