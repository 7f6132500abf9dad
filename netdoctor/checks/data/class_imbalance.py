"""The check `class-imbalance`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.scale_trial import location
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Array, Recording


@dataclass(frozen=True)
class ClassImbalance(Check):
    """Nearly all targets are of one class, and the model predicts nothing else.

    What it is: rare classes among many samples of one, with a loss that counts all samples alike.
    Why it hurts: always giving the commonest class is right in nine of ten cases; the model stops there, with a good
    accuracy, and never finds what it was made for.
    How it is decided: on a copy of the trained model in evaluation mode, on up to 12 captured batches: the commonest
    class makes 90 % of the targets or more, and of the other classes' samples (at least 10) fewer than a tenth are
    recognised.
    When it stays silent: balanced data; rare classes that are recognised; fewer than 30 steps; many labels per sample;
    moving targets. Without experiments.
    Fix: weigh the classes in the loss, or draw the rare ones more often; measure the balanced accuracy.
    Sources: He and Garcia, Learning from Imbalanced Data, 2009; PyTorch's documentation of CrossEntropyLoss (weight)
    and WeightedRandomSampler.
    """

    name = "class-imbalance"
    arms = frozenset({"final/evaluation"})
    explains = frozenset({"loss-not-decreasing", "input-independent-output", "label-input-mismatch", "constant-layer"})

    share: float = 0.9  # of the targets: a constant prediction then looks good
    recall: float = 0.1  # of the other classes' samples
    rare: int = 10  # samples of them: fewer say nothing about how they are recognised
    steps: int = 30  # before that any classifier gives one class

    def judge(self, recording: Recording) -> Iterator[Finding]:
        arm = recording.arms.get("final/evaluation")
        if arm is None or "targets" not in arm.curves or recording.steps < self.steps:
            return
        if recording.facts.get("moving_target") or recording.facts.get("several_optimizers"):
            return
        targets, right = arm.curves["targets"], arm.curves["right"]
        common, total = int(targets.argmax()), float(targets.sum())
        rest = total - float(targets[common])
        found = (float(right.sum()) - float(right[common])) / rest if rest else 1.0
        if total and targets[common] / total >= self.share and rest >= self.rare and found < self.recall:
            yield self._finding(recording, targets, common, found)

    def _finding(self, recording: Recording, targets: Array, common: int, found: float) -> Finding:
        share = float(targets[common] / targets.sum())
        at = location(recording.targets[0]) if recording.targets else Location()
        binary = recording.facts.get("loss_family") == "bce"
        return Finding(
            self.name,
            f"{100 * share:.3g} % of the targets are of class {common}, and the model predicts nothing else",
            Severity.WARNING,
            f"Of the {targets.sum() - targets[common]:.0f} samples of other classes in the captured batches it recognises "
            f"{100 * found:.2g} %.",
            at,
            (
                Evidence("commonest class among the targets", 100 * share, "≥", 100 * self.share, "%"),
                Evidence("samples of other classes recognised", 100 * found, "<", 100 * self.recall, "%"),
            ),
            (Fix("class-weights", "Weigh the classes by their rarity.", _code(targets, binary), Reach.RUN),),
            Certainty.MEASURED,
            None,
            share=share,
        )


def _code(targets: Array, binary: bool) -> str:
    if binary:
        return f"criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor({targets[0] / max(1.0, targets[1]):.3g}))"
    if targets.size > 12:
        return "counts = torch.bincount(labels, minlength=classes)\ncriterion = nn.CrossEntropyLoss(weight=1 / counts)"
    weights = ", ".join(f"{w:.3g}" for w in targets.sum() / (targets.size * np.maximum(targets, 1)))
    return f"criterion = nn.CrossEntropyLoss(weight=torch.tensor([{weights}]))"
