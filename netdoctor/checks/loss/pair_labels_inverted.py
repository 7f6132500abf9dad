"""The check `pair-labels-inverted`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.pair_labels import AS_THEY_ARE, LABEL, TURNED
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.checks.loss.turned_labels import turned_code
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity, Trial, Verdict
from netdoctor.recording import Arm, Recording, SourceLine

TREATMENT = "turn-pair-labels"


@dataclass(frozen=True)
class PairLabelsInverted(Check):
    """A loss pushes apart the pairs that are alike, and pulls together those that are not.

    What it is: the label of a pair means the opposite of what the loss takes it for. Hadsell's contrastive loss is often
    written with 1 for "different", while data say 1 for "same"; `nn.CosineEmbeddingLoss` and `nn.HingeEmbeddingLoss` want
    1 for alike and -1 for different. Or positive and negative of a triplet have changed places.
    Why it hurts: neighbours in the embedding are strangers; the loss may well fall a little, as all is pulled together.
    How it is decided: on copies. Where the loss compares pairs of embeddings by a label of two values, or triplets,
    two copies learn from some captured batches, one of them with the labels turned, and are asked for others. Labels that
    are right save much of the loss beside the same labels shuffled: a finding needs 50 % with them turned, learned in the
    training, less than 25 % as they are, and half of the loss. Closeness carries over (what is like the same thing is alike),
    being different does not: so labels the wrong way round have nothing that could be learned for other pairs.
    When it stays silent: the labels as they are teach something; neither sense does; both do, as for a classifier of pairs
    (it is not even asked), or two models with a similarity between them; fewer than 64 held-out pairs; pairs that are picked
    by what the model makes of them.
    Fix: `1 - label`, `-label`, or the arguments exchanged; tried on the copy.
    Sources: Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006 (Y = 0 for similar);
    PyTorch's documentation of CosineEmbeddingLoss, HingeEmbeddingLoss and TripletMarginLoss.
    """

    name = "pair-labels-inverted"
    arms = frozenset({AS_THEY_ARE, TURNED})
    explains = EVERYTHING | {"overfitting", "train-eval-shift", "redundant-units"}

    learned: float = 0.5  # of the held-out loss: right labels saved 57 to 90 % of it, at random it is under 20 %
    idle: float = 0.25  # the most that labels of the wrong sense may save: 0 to 10 % were seen
    rise: float = (
        0.25  # since the start of the training: pairs picked by what the first weights made of them have it before
    )
    share: float = 0.5  # of the loss that is left as they are: with labels turned it was a fifth
    pairs: int = 64  # held out: with fewer, chance alone saves a fourth

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        own, turned = recording.arms.get(AS_THEY_ARE), recording.arms.get(TURNED)
        failed = next((arm.failure for arm in (own, turned) if arm is not None and arm.failure), "")
        if failed:
            yield Abstention(self.name, failed)
        elif own is not None and turned is not None and self._opposite(own, turned):
            yield self._finding(own, turned)

    def _opposite(self, own: Arm, turned: Arm) -> bool:
        saved, before = float(turned.facts["saved"]), float(turned.facts["at first"])
        learned = saved >= self.learned and saved - before >= self.rise and float(own.facts["saved"]) < self.idle
        less = float(turned.facts["loss"]) <= self.share * float(own.facts["loss"])
        return learned and less and float(turned.facts["pairs"]) >= self.pairs

    def _finding(self, own: Arm, turned: Arm) -> Finding:
        facts = own.facts
        source = (
            SourceLine(str(facts["file"]), int(float(facts["line"])), str(facts["text"])) if facts["file"] else None
        )
        one, other = float(facts["loss"]), float(turned.facts["loss"])
        what = "the labels of the pairs mean" if facts["kind"] == LABEL else "the order of the triplets means"
        says = (
            "Pairs that are alike are pushed apart, and those that are not are pulled together. Two copies learned from the "
            f"same batches: on others the loss is {one:.3g} at best as it is, {other:.3g} with "
            f"{'the labels turned' if facts['kind'] == LABEL else 'alike and different exchanged'}. "
            "Only the other sense holds for pairs that were not trained on."
        )
        code = turned_code(facts)
        fix = Fix(TREATMENT, "Turn them round, here or where the data are made.", code, Reach.RUN, _trial(own, turned))
        evidence = (
            Evidence(
                "held-out loss saved by the labels as they are",
                100 * max(0.0, float(facts["saved"])),
                "<",
                100 * self.idle,
                "%",
            ),
            Evidence("the same with them turned", 100 * float(turned.facts["saved"]), "≥", 100 * self.learned, "%"),
        )
        at = Location.at(source, str(facts["module"]) or None, str(facts["operation"]), step=0)
        title = f"{what} the opposite of what the loss takes {'them' if facts['kind'] == LABEL else 'it'} for"
        return Finding(
            self.name, title, Severity.ERROR, says, at, evidence, (fix,), Certainty.PROVEN, first_step=0, share=1.0
        )


def _trial(own: Arm, turned: Arm) -> Trial:
    curves = tuple(map(float, own.losses)), tuple(map(float, turned.losses))
    return Trial(Verdict.CURED, *curves, steps=turned.steps, seconds=own.seconds + turned.seconds)
