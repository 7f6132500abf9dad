"""The check `non-finite-activation`."""

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
class NonFiniteActivation(Check):
    """The forward pass makes the first NaN or Inf.

    What it is: an operation of the forward pass (or of the loss) gave NaN or Inf although its inputs were finite:
    the logarithm of 0, a division by 0, exp of a large number, the root of a negative one, a fully masked softmax.

    Why it hurts: the loss becomes NaN, then every gradient, then every weight; nothing is learned from there on.

    How it is decided: the first step whose loss or gradient is non-finite is replayed operation by operation; the first
    one that makes a non-finite value is named with its module, call, source line, input ranges and guilty samples.
    Where values had been growing by two decades over the steps before, or exceed 1e15, it is called a divergence
    (certainty "inferred"), so that the cause of the growth ranks above.

    When it stays silent: infinities that are consumed before the loss (`masked_fill(-inf)` before a softmax); NaN that
    came with the batch (`nan-input`), in a weight (`non-finite-parameter`) or from backward (`non-finite-gradient`).

    Fix: the numerically safe form of that very operation, written into the source line where that can be parsed.

    Sources: peers.md c4 (producer and propagators, as in HF's DebugUnderflowOverflow); Higham, "Accuracy and Stability
    of Numerical Algorithms", 2002, chapter 1 (safe forms); advice A23.
    """

    name: ClassVar[str] = "non-finite-activation"
    breaks: ClassVar[bool] = True
    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.NONFINITE, Stat.RMS})
    explains: ClassVar[frozenset[str]] = CONSEQUENCES | {"non-finite-gradient", "non-finite-parameter"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        """One finding when the first non-finite value was made by the forward pass."""
        origin = birth(recording)
        if origin is not None and origin.phase == "forward":
            yield from_operation(self.name, recording, origin)
