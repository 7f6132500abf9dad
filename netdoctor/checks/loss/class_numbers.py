"""Class numbers that one output is regressed on, as an experiment shows them: names in no order, learned as a scale."""

from __future__ import annotations

from netdoctor.checks.loss.comparisons import REGRESSION, comparisons, line
from netdoctor.checks.loss.lines import renamed
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Measured, Reach, Severity, Trial, Verdict
from netdoctor.recording import Arm, Recording

NUMBERS, NAMES = "classes/as numbers", "classes/as names"
GAIN = 0.2  # more samples right: on scales a rounded regression and classes differ by less than 0.1, either way
HALF = 0.5  # of the samples right as classes: else what the second likeliest is tells nothing
ORDER = 1.5  # times 2 / kinds, the share of neighbours among second choices that have no order; scales: 2 to 5 times
CLASSES = {
    **dict.fromkeys(("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss"), "CrossEntropyLoss"),
    **dict.fromkeys(REGRESSION, "cross_entropy"),
}


def named(recording: Recording) -> tuple[Arm, Arm] | None:
    """Both arms, where the targets are names: many more samples are right as classes, and the classes have no order."""
    numbers, names = recording.arms.get(NUMBERS), recording.arms.get(NAMES)
    if numbers is None or names is None or numbers.failure or names.failure:
        return None
    before, after = float(numbers.facts["right"]), float(names.facts["right"])
    scale = float(names.facts["beside"]) > ORDER * 2 / float(names.facts["kinds"])
    return None if scale or after < HALF or after - before < GAIN else (numbers, names)


def finding(name: str, recording: Recording, numbers: Arm, names: Arm) -> Finding:
    """What was found, with the copy that took the numbers for classes as the trial of the fix."""
    comparison = next(iter(comparisons(recording)))
    source, kinds = line(recording, comparison.operation), int(float(names.facts["kinds"]))
    wrong = [100 - 100 * float(arm.facts["right"]) for arm in (numbers, names)]
    measured = Measured("held-out samples that get another class", wrong[0], wrong[1], "%")
    curves = tuple(map(float, numbers.losses)), tuple(map(float, names.losses))
    trial = Trial(Verdict.CURED, *curves, names.steps, numbers.seconds + names.seconds, measured=measured)
    code = renamed(source, CLASSES)
    says = f"Give the last layer {kinds} outputs, one per class, and use cross_entropy on the class numbers."
    beside = 100 * float(names.facts["beside"])
    return Finding(
        name,
        f"{comparison.operation.name} regresses one output on the numbers of {kinds} classes, which are in no order",
        Severity.WARNING,
        f"Two copies learned from the same batches: as classes {100 - wrong[1]:.3g} % of held-out samples are right, "
        f"as rounded numbers {100 - wrong[0]:.3g} %. The second likeliest class lies beside the likeliest in "
        f"{beside:.3g} %; without any order it would in {200 / kinds:.3g} %, on a scale in most.",
        Location.at(source, step=0),
        (
            Evidence("more held-out samples right as classes", wrong[0] - wrong[1], "≥", 100 * GAIN, "%"),
            Evidence("second choices that lie beside the first", beside, "≤", 100 * ORDER * 2 / kinds, "%"),
        ),
        (Fix("fitting-loss", says, code, Reach.MODEL, trial),),
        Certainty.PROVEN,
        first_step=0,
        share=1.0,
    )
