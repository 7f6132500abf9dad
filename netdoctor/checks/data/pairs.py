"""Whether a sample that comes again brings its label again, as an experiment counted it in the captured batches."""

from __future__ import annotations

from netdoctor.checks.data.scale_trial import location
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

CODE = "order = torch.randperm(len(X))\nX, y = X[order], y[order]  # one order for both"

LEAST, SHARE = 30, 0.3  # samples that came again, and of all seen: some passes over the data, and no few duplicates
CHANCE = 0.8  # of the labels that would differ if they were drawn at random


def torn(recording: Recording) -> tuple[float, float, int] | None:
    """(share of the samples that came again with another label, the same for labels at random, how many came again).

    None unless it is about as many as at random. A data set with wrong labels has the same wrong ones in each epoch.
    """
    arm = recording.arms.get("labels/conflicts")
    if arm is None or arm.failure or arm.facts.get("kind") != "classes" or arm.facts.get("natural"):
        return None
    again, moved = float(arm.facts.get("again", 0.0)), float(arm.facts.get("moved", 0.0))
    chance, seen = float(arm.facts.get("chance", 0.0)), float(arm.facts.get("seen", 0.0))
    if again < LEAST or again < SHARE * seen or chance <= 0 or moved < CHANCE * chance * again:
        return None
    return moved / again, chance, int(again)


def lost(name: str, moved: float, chance: float, again: int, recording: Recording) -> Finding:
    """What `torn` found, as a finding."""
    at = location(recording.targets[0]) if recording.targets else Location(step=0)
    return Finding(
        name,
        f"inputs lose their labels: {100 * moved:.3g} % of the samples that come again have another label",
        Severity.ERROR,
        f"{again} samples of the captured batches had been in an earlier one. Labels at random would differ in "
        f"{100 * chance:.3g} %: inputs and labels are brought into an order each on its own.",
        at,
        (Evidence("samples with another label than before", 100 * moved, "≥", 100 * CHANCE * chance, "%"),),
        (Fix("pair-again", "Bring inputs and labels into one order, with one permutation.", CODE, Reach.RUN),),
        Certainty.MEASURED,
        0,
        share=1.0,
    )
