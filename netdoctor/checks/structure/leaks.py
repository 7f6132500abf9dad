"""What an experiment found that lets samples, or positions, into each other's output: how much, and where it is born."""

from __future__ import annotations

import math

from netdoctor.finding import Location
from netdoctor.recording import Arm, SourceLine


def changes(share: float) -> str:
    """By how much, in words."""
    return f"changes by {100 * share:.2g} %" if math.isfinite(share) else "becomes NaN or Inf"


def place(arm: Arm) -> Location:
    """Where the change that an arm found is born."""
    file = str(arm.facts.get("file", ""))
    source = SourceLine(file, int(float(arm.facts["line"])), str(arm.facts["text"])) if file else None
    return Location.at(source, str(arm.facts["module"]) or None, str(arm.facts["operation"]) or None, step=0)
