"""The check `misaligned-targets`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.turned import ASSIGNED, COMMON, SHARE, SHUFFLED, TRUE, TURNED, end, together, turned_back
from netdoctor.checks.loss.symptoms import NO_LEARNING
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Location, Severity, Verdict
from netdoctor.recording import Arm, Recording, SourceLine


@dataclass(frozen=True)
class MisalignedTargets(Check):
    """Targets on a grid (masks, maps, cells) do not lie where their inputs lie: they are turned, mirrored or transposed.

    What it is: an image and its mask are flipped or turned by separate random draws; or row and column, height and width,
    or the direction of the y axis were exchanged on the way to all targets.
    Why it hurts: what the model sees in one place it must answer in another. It learns a blurred average of all ways
    round, or only what lies on an axis of symmetry, and the loss stays on a plateau.
    How it is decided: by experiment. A copy goes on from the trained weights (anew where these went blank), and in each step the
    targets of each sample are turned to where they fit best (eight ways on square grids, four on others). It is an error
    where it ends under 70 % of the loss of a copy that goes on as it is, and at least a fifth of the samples fit clearly
    better turned. Where one way round fits 90 % of the samples, it is a copy with all targets turned so that must get
    there. Where not, the same is done with the targets of other samples: choosing the best of eight wins something by
    itself, so it must end under 70 % of that as well.
    When it stays silent: little is left of the loss; targets as good as ever (also noisy ones) or those of an autoencoder;
    a task that is not learned; losses that can be negative; targets without a grid, grids of less than 4
    cells a side, and targets that were shifted or scaled against their inputs, which are not looked for.
    Fix: draw the parameters of an augmentation once and apply it to both; index a grid by row (y) first, then column (x).
    Sources: torchvision.transforms.v2, which transforms images, masks and boxes jointly for this reason; advice A30.
    """

    name = "misaligned-targets"
    arms = frozenset({ASSIGNED, TRUE, SHUFFLED, TURNED})
    explains = NO_LEARNING | {
        "input-independent-output",
        "train-eval-shift",
        "overfitting",
        "dead-relu",
        "conflicting-labels",
    }

    steps: int = 24  # of each arm: one pass over the captured batches
    better: float = 0.7  # of the loss: masks of U-Nets flipped by themselves gave 0.3 and 0.35, transposed cells 0.15
    share: float = SHARE

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        assigned, true = (recording.arms.get(name) for name in (ASSIGNED, TRUE))
        other = recording.arms.get(TURNED) or recording.arms.get(SHUFFLED)
        if assigned is not None and assigned.failure:
            yield Abstention(self.name, assigned.failure)
        if assigned is None or assigned.failure or float(assigned.facts["others"]) < self.share:
            return
        if true is None or other is None or min(len(arm.losses) for arm in (assigned, true, other)) < self.steps:
            yield Abstention(self.name, f"fewer than {self.steps} steps could be run with turned targets")
            return
        common = other.name == TURNED
        treated, beside = (other, [true]) if common else (assigned, [true, other])
        steps = min(len(arm.losses) for arm in (treated, *beside))
        limit = min(end(arm.losses[:steps]) for arm in beside)
        low = end(treated.losses[:steps])
        if treated.losses.min() >= 0 and low <= self.better * limit:
            yield self._finding(assigned, treated, beside, steps, low / limit)

    def _finding(self, assigned: Arm, treated: Arm, beside: list[Arm], steps: int, ratio: float) -> Finding:
        facts, common = assigned.facts, treated is not assigned
        share, how = float(facts["fits" if common else "others"]), str(facts["common"])
        if common:
            title = f"the targets do not lie where their inputs lie: {how} they fit, {100 * share:.3g} % of them"
            fix, limit = turned_back(how, beside[0], treated, steps), COMMON
        else:
            title = f"inputs and targets are turned apart: {100 * share:.3g} % of the targets fit another way round"
            fix, limit = together(beside[0], treated, steps), self.share
        names = ["as they are", "those of other samples, turned to where they fit"]
        ends = "; ".join(f"{end(a.losses[:steps]):.3g} {name}" for a, name in zip(beside, names, strict=False))
        began = "went on from the trained weights" if facts.get("trained", True) else "began anew"
        says = f"Copies {began} for {steps} steps. The loss came to {ends}; "
        says += f"and to {end(treated.losses[:steps]):.3g} {how if common else 'each turned to where it fits best'}."
        evidence = (
            Evidence("targets that fit another way round", 100 * share, "≥", 100 * limit, "%"),
            Evidence("loss with turned targets, of the least without", 100 * ratio, "≤", 100 * self.better, "%"),
        )
        at = SourceLine(str(facts["file"]), int(float(facts["line"])), str(facts["text"])) if "file" in facts else None
        proven = (
            common and fix.trial is not None and fix.trial.verdict is Verdict.CURED
        )  # else the arm chose by the loss
        sure, place = Certainty.PROVEN if proven else Certainty.MEASURED, Location.at(at, step=0)
        return Finding(self.name, title, Severity.ERROR, says, place, evidence, (fix,), sure, 0, share=share)
