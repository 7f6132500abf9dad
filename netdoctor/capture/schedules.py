"""How long a learning-rate schedule is meant to be."""

from __future__ import annotations

import math
from typing import Any

_LENGTHS = {
    "OneCycleLR": "total_steps",
    "CosineAnnealingLR": "T_max",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
}


def length(scheduler: Any) -> tuple[str, float]:
    """The kind of a scheduler, and after how many calls of its `step` it comes to its end; NaN for one without an end."""
    kind = type(scheduler).__name__
    found = getattr(scheduler, _LENGTHS.get(kind, ""), None)
    return kind, float(found) if isinstance(found, int) else math.nan
