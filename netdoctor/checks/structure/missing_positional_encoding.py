"""A sequence model that does not know the order of its sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity, Trial, Verdict
from netdoctor.recording import Arm, Recording

CODE = "self.position = nn.Embedding(max_length, width)  # in __init__\nx = x + self.position(torch.arange(x.shape[1]))"


@dataclass(frozen=True)
class MissingPositionalEncoding(Check):
    """The model gives the same for a sequence in any order, though the targets depend on the order.

    What it is: attention without positions: no positional encoding, or one that is built and never added.
    Why it hurts: to attention a sequence is a bag: "dog bites man" and "man bites dog" are one and the same.
    How it is decided: on a copy in evaluation mode all sequences of a captured batch are permuted alike; the output
    stays the same, or is permuted in the same way. Then copies learn from two thirds of the captured batches: as they
    are, with sinusoidal positions added to the first embedding, and with these in a random order for each sample. A
    warning when the loss on the other third is lower by 15 % or more with positions than with either of the others,
    learned and not there from the start, and without them is still a quarter of where it began; an error when in
    addition the script's training does not work.
    When it stays silent: recurrences, convolutions, causal masks and all else that tells positions apart; sets, graphs
    and bags of words, which are predicted no better with positions; fewer than 4 positions.
    Fix: add a positional encoding to the embedding.
    Sources: Vaswani et al., Attention Is All You Need, 2017 (section 3.5); Zaheer et al., Deep Sets, 2017.
    """

    name = "missing-positional-encoding"
    arms = frozenset({"positions/order", "positions/without", "positions/shuffled", "positions/with"})
    explains = frozenset({"loss-not-decreasing", "label-input-mismatch", "underfitting", "no-gradient", "overfitting"})

    lower: float = 0.15  # of the held-out loss: twins of one model differ by a few percent
    left: float = 0.25  # of its start, in the copy without positions: near its floor a loss is mostly chance

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        order = recording.arms.get("positions/order")
        if order is None or order.failure or not order.facts.get("blind"):
            return
        arms = [recording.arms.get(f"positions/{name}") for name in ("without", "shuffled", "with")]
        without, shuffled, given = arms
        if without is None or shuffled is None or given is None or any(arm.failure for arm in arms if arm is not None):
            failed = [arm.failure for arm in arms if arm is not None and arm.failure]
            why = failed[0] if failed else "the trial with positions was not run"
            yield Abstention(self.name, f"the model is blind to the order of its sequences, but {why}")
            return
        before, after = float(without.facts["best"]), float(given.facts["best"])
        other = min(before, float(shuffled.facts["best"]))  # more numbers help, too; the order is what only these tell
        saved = (other - after) / other if other > 0 else 0.0
        learned = after <= (1 - self.lower) * float(given.losses[0])  # added positions change the first loss as well
        if saved >= self.lower and learned and before >= self.left * float(without.losses[0]):
            yield self._finding(recording, order, (without, given), saved)

    def _finding(self, recording: Recording, order: Arm, pair: tuple[Arm, Arm], saved: float) -> Finding:
        grave = harm(recording).state is State.HURT
        unused = str(order.facts.get("unused", ""))
        says = "All its sequences permuted alike give the same output, permuted likewise. "
        says += f"{unused} is there, and has no effect." if unused else "It has nothing that tells positions apart."
        before, after = (tuple(map(float, arm.losses)) for arm in pair)
        cured = float(pair[1].facts["best"]) < self.left * after[0]
        verdict = Verdict.CURED if cured else Verdict.EASED
        words = f"held-out loss {pair[0].facts['best']:.4g} without positions, {pair[1].facts['best']:.4g} with them"
        trial = Trial(verdict, before, after, pair[1].steps, pair[1].seconds, words)
        at = recording.layer_at(unused) or next(iter(recording.layers), None)  # positions go where the data enters
        return Finding(
            self.name,
            f"the model is blind to the order of its {order.facts['length']:.0f} positions, and the targets depend on it",
            Severity.ERROR if grave else Severity.WARNING,
            says,
            Location.at(at.source if at else None, unused or (at.path if at else None), step=0),
            (Evidence("held-out loss saved by positions", 100 * saved, "≥", 100 * self.lower, "%"),),
            (Fix("positional-encoding", "Add positions to the embedding.", CODE, Reach.MODEL, trial),),
            Certainty.PROVEN,
            0,
            share=1.0,
        )
