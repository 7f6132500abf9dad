"""Inputs, and parts of them, that no loss depends on: their names, and whether anything is read at all."""

from __future__ import annotations

import numpy as np

from netdoctor.recording import Arm, Array, Recording


def named(number: int, arm: Arm) -> str:
    """What the model calls an input, or its number."""
    return str(arm.facts.get("argument", "")) or f"input {number + 1}"


def everything(arm: Arm) -> bool:
    """Whether nothing of the input is read: then there is another fault, and it is not here."""
    curves = [curve[np.isfinite(curve)] for curve in arm.curves.values()]
    return bool(arm.facts.get("whole")) or any(curve.size > 0 and bool((curve == 1).all()) for curve in curves)


def listed(kind: str, silent: Array) -> str:
    """Which entries of a dimension are silent, in words."""
    found = np.flatnonzero(silent)
    if found.size == 1:
        return f"{kind} {found[0]}"
    run = found[-1] - found[0] + 1 == found.size
    return f"{kind}s {found[0]} to {found[-1]}" if run else f"{found.size} {kind}s"


def nothing_read(recording: Recording) -> bool:
    """Whether no input has any influence on what the trained model says."""
    arms = [arm for name, arm in recording.arms.items() if name.startswith("usage/") and not arm.failure]
    return bool(arms) and all(bool(arm.facts.get("whole")) for arm in arms)
