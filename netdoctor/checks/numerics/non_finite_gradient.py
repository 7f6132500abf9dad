"""The check `non-finite-gradient`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from netdoctor.check import Check
from netdoctor.checks.numerics.birth import birth
from netdoctor.checks.numerics.wording import CONSEQUENCES, from_operation
from netdoctor.finding import Finding
from netdoctor.recording import Recording, Stat


@dataclass(frozen=True)
class NonFiniteGradient(Check):
    """The forward pass is finite, and the backward pass makes the first NaN or Inf.

    What it is: an operation whose value is finite but whose derivative is not: sqrt or a norm at 0, a power below 1 at
    0, atan2 at the origin, acos at ±1, or a steep function behind a `torch.where` that masks only its result.

    Why it hurts: the loss still looks healthy in this step; the optimizer writes NaN into every weight that the
    gradient reaches, and the next forward pass gives NaN.

    How it is decided: the step is replayed; the first backward operation with finite incoming and non-finite outgoing
    gradient is named, with the line of the forward pass that recorded it and the range of what went in there.

    When it stays silent: steps that a loss scaler (GradScaler) skips by design while it finds its scale (up to 20, as
    halving 2**16 takes 17 skips to reach 1) with finite losses.

    Fix: the safe form of that operation: eps inside the root, the mask before the steep function, the argument clamped.

    Sources: peers.md c4; PyTorch's notes on autograd, "gradients for non-differentiable functions"; advice A23.
    """

    name: ClassVar[str] = "non-finite-gradient"
    breaks: ClassVar[bool] = True
    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.NONFINITE, Stat.RMS})
    explains: ClassVar[frozenset[str]] = CONSEQUENCES | {"non-finite-activation", "non-finite-parameter"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        """One finding when the first non-finite value was made by the backward pass."""
        origin = birth(recording)
        if origin is not None and origin.phase == "backward":
            yield from_operation(self.name, recording, origin)
