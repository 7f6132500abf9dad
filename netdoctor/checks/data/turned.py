"""The experiment that turns dense targets: the names of its arms, and what its outcome asks of the reader."""

from __future__ import annotations

import numpy as np

from netdoctor.finding import Fix, Reach, Trial, Verdict
from netdoctor.recording import Arm, Array

ASSIGNED, TRUE = "alignment/assigned", "alignment/true"
TURNED, SHUFFLED = "alignment/turned", "alignment/shuffled"
LEFT = 0.3  # of a constant prediction's loss: a training that leaves less has learned where its targets lie
SHARE = 0.2  # of the samples that fit another way round: a flip by chance misplaces half of them
COMMON = 0.9  # of the samples that one way round fits: it is that of all, and the rest are hard to tell
_HALF = 0.5  # of the loss: what a treatment leaves that does more than ease
_BOTH = """flip, turns = random.random() < 0.5, random.randint(0, 3)  # drawn once
image, mask = (torch.rot90(t.flip(-1) if flip else t, turns, (-2, -1)) for t in (image, mask))"""
_BACK = {
    "transposed": "target = target.transpose(-2, -1)  # or where it is made: target[..., row, column], row from y",
    "mirrored left to right": "target = target.flip(-1)",
    "mirrored upside down": "target = target.flip(-2)  # the y axis of an image points down",
    "turned by 180°": "target = target.flip(-2, -1)",
    "turned by 90° to the right": "target = torch.rot90(target, -1, (-2, -1))",
    "turned by 90° to the left": "target = torch.rot90(target, 1, (-2, -1))",
    "transposed along the other diagonal": "target = target.transpose(-2, -1).flip(-2, -1)",
}
_HINTS = {
    "transposed": "rows and columns are exchanged: index by row (from y, the height) first, then by column (from x)",
    "mirrored upside down": "the y axis points the other way: row 0 of an image is its top",
}


def end(losses: Array) -> float:
    """The level at which losses end: the median of the last fifth."""
    return float(np.median(losses[-max(2, len(losses) // 5) :]))


def turned_back(how: str, true: Arm, treated: Arm, steps: int) -> Fix:
    """Turn all targets by the way round in which they fit."""
    hint = f": {_HINTS[how]}" if how in _HINTS else ""
    return Fix(
        "turn-targets", f"Bring all targets {how}{hint}.", _BACK.get(how, ""), Reach.RUN, _trial(true, treated, steps)
    )


def together(true: Arm, treated: Arm, steps: int) -> Fix:
    """Turn each target as its input was turned."""
    says = "Draw the parameters of an augmentation once, and apply it to the input and its target."
    return Fix("one-draw-for-both", says, _BOTH, Reach.RUN, _trial(true, treated, steps))


def _trial(true: Arm, treated: Arm, steps: int) -> Trial:
    one, other = true.losses[:steps], treated.losses[:steps]
    verdict = Verdict.CURED if end(other) <= _HALF * end(one) else Verdict.EASED
    says = "the targets of each sample were turned to where they fit best" if treated.name == ASSIGNED else ""
    return Trial(verdict, tuple(map(float, one)), tuple(map(float, other)), steps, true.seconds + treated.seconds, says)
