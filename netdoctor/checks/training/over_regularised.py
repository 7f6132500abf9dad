"""The check `over-regularised`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.signal import outcome
from netdoctor.checks.signal.consequences import NO_TRAINING
from netdoctor.checks.training import decayed, side_term
from netdoctor.checks.training.lr_trials import rescue
from netdoctor.checks.training.pull import pulls, weaker
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, Stat
from netdoctor.trend import judge

CONTROL, DECAY, PENALTY = (f"regularisation/{x}" for x in ("as it is", "without weight decay", "without penalty"))


@dataclass(frozen=True)
class OverRegularised(Check):
    """Weight decay, or a penalty or another side term in the loss, keeps the training from learning.

    What it is: the pull of the weights towards zero balances the gradient before the data is learned; or a term that
    compares nothing with data, as a divergence from a prior, outweighs the one that does (posterior collapse).
    Why it hurts: the training loss itself stays high, which no regularisation is meant to do.
    How it is decided: a fifth of the loss or more is left. Where nothing was learned, a copy goes from the start with a
    hundredth of the decay: it takes 30 % off the loss of other batches, three times as much as with all of it. Or decay
    pulls at half of the matrices with a fifth or more of the gradient's (or the update's) strength, or a penalty is a
    fifth of the loss, and the trained model goes on without it, and 30 % below where it goes with it. A side term: the
    trained model is no better than a constant prediction, nor is a copy after 180 steps from the start; with a
    thousandth of the term, a copy leaves 30 % less than that of it. An error where nothing was learned.
    When it stays silent: training that reached its floor; usual decay (1e-4 to 0.1 with AdamW); where nothing is gained
    without it; a usual decay where a lower learning rate trains. Dropout is the matter of `dropout-too-high`.
    Fix: a hundredth of the decay (no more than 1e-3, or 1e-2 with AdamW), or of the penalty's factor.
    Sources: Krogh and Hertz 1991 (weight decay as a pull); Goodfellow et al., 7.1; Bowman et al. 2016 (posterior collapse).
    """

    name = "over-regularised"
    needs = frozenset({Stat.RMS})
    arms = frozenset({CONTROL, DECAY, PENALTY, side_term.AS_IT_IS, side_term.LESS, decayed.AS_IT_IS, decayed.WEAK})
    explains = frozenset(
        {"vanishing-activations", "vanishing-gradients", "learning-rate-too-low", "learning-rate-too-high", "dead-relu"}
        | {"constant-layer", "input-independent-output", "class-imbalance", "label-input-mismatch"}
        | {"adam-l2-weight-decay", *NO_TRAINING}
    )

    pull: float = 0.2  # of the gradient: measured 0.005 with 5e-4 and SGD, 0.3 where a third of the loss is left
    usual: float = 0.1  # the most that is common with AdamW
    stuck: float = 0.1  # of the loss in the control arm, as learning-rate-too-high asks
    gained: float = 0.3  # of the loss with regularisation: far more than 60 steps gain by chance
    times: float = 3.0  # what a weak decay takes off, of what the script's own does: the others learn, too

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        control, found = recording.arms.get(CONTROL), sorted(pulls(recording).values())
        pull = found[len(found) // 2] if found else 0.0
        term: Finding | Abstention | None = side_term.finding(self.name, recording)
        if term is None and not self._by_rate(recording):
            term = decayed.finding(self.name, recording, self.gained, self.times)
        if term is None and control is not None and control.failure:
            term = Abstention(self.name, control.failure)
        if control is None or term is not None:
            yield from (term,) if term is not None else ()
            return
        for name in (DECAY, PENALTY):
            arm = recording.arms.get(name)
            if arm is None or arm.failure or (name == DECAY and (pull < self.pull or self._by_rate(recording))):
                continue
            gained = 1 - float(arm.facts["data"]) / max(float(control.facts["data"]), 1e-12)
            if gained >= self.gained:
                yield self._finding(recording, name, control, arm, gained)

    def _by_rate(self, recording: Recording) -> bool:
        """Whether a usual decay only pulls because the learning rate, which multiplies it, is too high."""
        usual = max(map(decayed.decay_of, recording.optimizers), default=0.0) <= self.usual
        return usual and rescue(recording, ("0.1", "0.01"), self.gained, self.stuck) is not None

    def _finding(self, recording: Recording, name: str, control: Arm, arm: Arm, gained: float) -> Finding:
        decay = name == DECAY
        strength = decayed.decay_of(optimizer := decayed.strongest(recording))
        source = optimizer.source if decay and optimizer else side_term.line(recording)
        what = f"a weight decay of {strength:g}" if decay else "a penalty in the loss"
        after, kept = float(arm.facts["data"]), float(control.facts["data"])
        less = weaker(strength, optimizer.type if optimizer else "")
        code = f"weight_decay={less:g}" if decay else "loss = data_loss + 0.01 * penalty"
        says = f"Take {less:g}." if decay else "Take a hundredth of it."
        return Finding(
            self.name,
            f"{what} keeps the loss from falling",
            Severity.ERROR if decay and outcome.hurt(judge(recording)) else Severity.WARNING,
            f"From the trained weights, {len(arm.losses)} more steps bring the loss of the data to {after:.3g} without it, "
            f"and to {kept:.3g} with it.",
            Location.at(source),
            (Evidence("loss gained without it", 100 * gained, "≥", 100 * self.gained, "%"),),
            (Fix("less-decay" if decay else "less-penalty", says, code, Reach.RUN),),
            Certainty.PROVEN,
            share=min(1.0, gained),
        )
