"""Fixes that no copy can show, each with the reason: they are advice, and never said to be more."""

from __future__ import annotations

_ONE_PROCESS = "one process cannot show what the others do"
REASONS = {
    "broadcast-weights": _ONE_PROCESS,
    "call-wrapped-model": _ONE_PROCESS,
    "look-at-rank-data": _ONE_PROCESS,
    "check-weights": "what writes to the weights runs outside of the captured steps",
    "copy-item": "the captured batches were read before",
    "copy-state": "what was kept is not in the captured steps",
    "find-operation": "the operation is not known yet",
    "hold-unfrozen": "the captured steps ran without them: what they make was computed before, or under torch.no_grad()",
    "pair-again": "the true pairs are not in the captured batches",
    "reload": "an earlier checkpoint is not at hand",
}
