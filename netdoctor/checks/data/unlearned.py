"""The finding of `conflicting-labels` about samples that cannot be taught while all others are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from netdoctor.checks.data.scale_trial import location
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

_FEW = 0.05  # of the samples: more are a model that is too small, or labels that are noise


def unlearned(check: str, rest: float, least: int, recording: Recording) -> Iterator[Finding]:
    """At least `least` samples stayed wrong, of all a few, while a share of `rest` of the others was learned by heart."""
    arm = recording.arms.get("labels/unfitted")
    if arm is None or arm.failure:
        return
    facts = arm.facts
    stuck, seen, right = (float(facts.get(name, 0.0)) for name in ("stuck", "seen", "right"))
    share = right / max(1.0, seen - stuck)
    if stuck < least or stuck > _FEW * seen or share < rest:
        return
    samples = tuple(int(index) for index in str(facts.get("samples", "")).split(",") if index)
    batch = int(float(facts.get("batch", 0.0)))
    at = location(recording.targets[0]) if recording.targets else Location()
    yield Finding(
        check,
        f"{stuck:.0f} of {seen:.0f} samples stay wrong though the model knows the others by heart",
        Severity.ADVICE,
        f"{float(facts.get('passes', 0.0)):.0f} more passes over them did not help, so that nearly the same input seems to carry "
        f"another label. In captured batch {batch}: samples {', '.join(map(str, samples[:8]))}.",
        replace(at, step=None, samples=samples),
        (Evidence("other samples learned by heart", 100 * share, "≥", 100 * rest, "%"),),
        (Fix("look-at-labels", "Look at these samples, and at those most like them.", "", Reach.RUN),),
        Certainty.INFERRED,
        share=stuck / seen,
    )
