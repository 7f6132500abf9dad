"""Two passes over the same batch differ in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine

ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class NondeterministicEval(Check):
    """In evaluation mode the model gives something else for the same batch each time.

    What it is: a dropout that does not know of `model.eval()`: `F.dropout(x)` without `training=self.training`, a
    `dropout_p` handed to attention at all times, a `nn.Dropout` built inside of `forward`.
    Why it hurts: every evaluation and every prediction is made with units missing at random, and is worse for it.
    How it is decided: the first captured model call is made twice on a copy, all modules in evaluation mode, with two
    seeds. The outputs differ, and a dropout was active. A warning where nobody said so.
    When it stays silent: outputs that are the same. Models that sample on purpose (VAE, diffusion, gumbel), dropouts
    with `training=True` written out and layers that refuse evaluation mode (Monte Carlo dropout): advice.
    Fix: pass `self.training`, or use an `nn.Dropout` that `__init__` makes.
    Sources: PyTorch's documentation of torch.nn.functional.dropout (training=True by default); advice A39.
    """

    name = "nondeterministic-eval"
    arms = frozenset({"determinism/evaluation"})

    share: float = 0.001  # mean difference over mean output: rounding and summation order stay far below

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get("determinism/evaluation")
        if arm is None:
            return
        if arm.failure:
            yield Abstention(self.name, arm.failure)
            return
        measured = float(arm.facts.get("share", 0.0))
        if arm.facts.get("differs") and measured >= self.share:
            yield self._finding(arm, measured)

    def _finding(self, arm: Arm, measured: float) -> Finding:
        operation, text = str(arm.facts.get("operation", "")), str(arm.facts.get("text", ""))
        on_purpose = "training=True" in text.replace(" ", "") or bool(arm.facts.get("registered"))
        file = str(arm.facts.get("file", ""))
        at = SourceLine(file, int(float(arm.facts.get("line", 0))), text) if file else None
        wrong = bool(operation) and not on_purpose
        says = f"{operation} drops {100 * float(arm.facts.get('p', 0)):.0f} % there, whatever the model's mode."
        if not operation:
            says = "It draws random numbers by itself: fine for a model that samples, wrong for a regulariser."
        return Finding(
            self.name,
            f"in evaluation mode two passes over the same batch differ by {100 * measured:.2g} % of the output",
            Severity.WARNING if wrong else Severity.ADVICE,
            says,
            Location.at(at, operation=operation or None),
            (Evidence("mean difference between two passes", 100 * measured, "≥", 100 * self.share, "%"),),
            (Fix("training-flag", "Let the dropout follow the model's mode.", _code(operation, arm), Reach.RUN),),
            Certainty.PROVEN,
            0,
            share=1.0,
        )


def _code(operation: str, arm: Arm) -> str:
    p = f"{float(arm.facts.get('p', 0.5)):g}"
    if operation == ATTENTION:
        return f"F.scaled_dot_product_attention(q, k, v, dropout_p={p} if self.training else 0.0)"
    if "nn." in str(arm.facts.get("text", "")):
        return f"self.dropout = nn.Dropout({p})  # in __init__\nx = self.dropout(x)      # in forward"
    return f"x = F.{operation or 'dropout'}(x, p={p}, training=self.training)"
