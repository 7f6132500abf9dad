"""A generator that is trained to please its discriminator in the wrong sense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.game import (
    AS_IT_IS,
    CLASSES,
    LABELS,
    PUSHES,
    TREATMENT,
    TURNED,
    line_of,
    trial_of,
    turned_line,
)
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.finding import (
    Abstention,
    Certainty,
    Evidence,
    Finding,
    Fix,
    Location,
    Reach,
    Severity,
    Verdict,
)
from netdoctor.recording import Arm, Recording


@dataclass(frozen=True)
class GeneratorHelpsDiscriminator(Check):
    """The generator is trained to make its samples look generated: it helps the discriminator that it should deceive.

    What it is: the generator's loss compares the scores of its samples with the label of generated ones, or has the sign of
    the discriminator's (critic's) loss. Both pull these scores the same way.
    Why it hurts: there is no game. The generator runs from the data, its loss falls to its lowest value, and nothing that
    the discriminator knows of the data is learned.
    How it is decided: on a copy. Two optimizers step in turns on losses of their own. With all scores at one common level,
    the loss of the one (the discriminator's) pushes those of samples that the other's model made all one way, and those of
    samples that do not change with it the opposite way; the loss of the other (the generator's) pushes the scores of its
    samples the first way, at every such level and in each of three turns, and a small step along it moves them so. Then two copies
    train, in one of them with that push turned.
    When it stays silent: games, whatever the loss; gradients that are turned on their way, maximize=True; labels that
    differ within a kind; models that minimise one loss together; judges of generated samples alone; samples from
    a pool of earlier steps alone; both steps after both backward calls; steps that cannot be run again (labels that are
    overwritten in place later); runs without experiments.
    Fix: the label of real samples, or the other sign.
    Sources: Goodfellow et al. 2014 (the generator maximises log D(G(z))); Arjovsky et al. 2017 (algorithm 1: the critic
    ascends and the generator descends); Heusel et al. 2017 (Fréchet distance).
    """

    name = "generator-helps-discriminator"
    arms = frozenset({PUSHES, AS_IT_IS, TURNED})
    explains = NO_LEARNING | NO_SIGNAL

    halved: float = 0.5  # of the distance that the copy as it is has: nearer is a cure, as of any other trial's number
    eased: float = 0.8  # of it: what a trial with other noise may come to by chance lies above

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get(PUSHES)
        if arm is not None and arm.failure:
            yield Abstention(self.name, arm.failure)
        elif arm is not None and float(arm.facts["helps"]) >= float(arm.facts["turns"]):
            yield self._finding(recording, arm)

    def _finding(self, recording: Recording, arm: Arm) -> Finding:
        labels, trial = arm.facts["form"] in (LABELS, CLASSES), trial_of(recording, self.halved, self.eased)
        ways = ("down", "up") if arm.facts["up"] else ("up", "down")
        says = f"Both losses push the scores of generated samples {ways[0]}, and the discriminator's pushes those of real ones "
        says += f"{ways[1]}: nobody deceives it, and the generator moves away from the data. That its loss falls is no success."
        helps, turns = float(arm.facts["helps"]), float(arm.facts["turns"])
        fix = "Compare with the label of real samples." if labels else "Turn the sign of the scores."
        return Finding(
            self.name,
            "the generator is trained to help its discriminator: "
            + ("its samples get the label of generated ones" if labels else "its loss has the discriminator's sign"),
            Severity.ERROR,
            says,
            Location.at(line_of(arm.facts), step=0),
            (
                Evidence("turns in which both push the scores the same way", helps, "≥", turns),
                Evidence("common levels of the scores at which they do", float(arm.facts["levels"]), "≥", 1.0),
            ),
            (Fix(TREATMENT, fix, turned_line(arm.facts), Reach.RUN, trial),),
            Certainty.PROVEN if trial is not None and trial.verdict is Verdict.CURED else Certainty.MEASURED,
            first_step=0,
            share=1.0,
        )
