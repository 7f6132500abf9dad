"""What the captured steps suggest for a finding whose own fixes do not cure it. Only what cures is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.numerics.birth import birth
from netdoctor.checks.numerics.safe_forms import MARGINS, prescribe
from netdoctor.checks.signal import initialisation
from netdoctor.checks.training.optimizer_line import with_lr
from netdoctor.experiments import range_test
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.optimization import optimizer_line
from netdoctor.experiments.treatments.safe_operations import safe_form
from netdoctor.experiments.treatments.treatment import Bench, Case, Places, Treatment, first_argument
from netdoctor.experiments.treatments.weights import run_code
from netdoctor.experiments.verdict import decide, scale_of
from netdoctor.finding import Finding, Fix, Reach, Trial, Verdict
from netdoctor.graph import Operation
from netdoctor.recording import Recording

SAME = 1e-4  # relative: the replay's first loss is that of the script (bit for bit on a CPU)
DIFFERENT = 1e-2  # relative: beyond what the order of sums can grow to in the captured steps
_LEAST = 1e-12
OPEN = frozenset({"cannot-overfit-tiny-batch", "loss-not-decreasing"})  # symptoms whose cause nobody named
OF_RATE = OPEN | {
    "learning-rate-too-high",
    "learning-rate-too-low",
    "loss-diverging",
    "exploding-gradients",
    "clip-too-small",
}
ANOTHER = 3.0  # times: two rates that are nearer train alike
# Functions of a weight that take away what it can be: its sign, its size.
_NARROWING = frozenset({"abs", "square", "exp", "relu", "sigmoid", "softplus", "tanh", "clamp", "clamp_min", "sign"})


def propose(
    recording: Recording, step: TrainingStep, places: Places, finding: Finding
) -> Iterator[tuple[Fix, Treatment]]:
    """Fixes to be tried, with their treatments."""
    if finding.check in ("non-finite-activation", "non-finite-gradient"):
        yield from _wider_margins(recording, step, places, finding)
    if finding.check in OPEN:
        yield from _plain_weights(recording, places)
    yield from _wider_initialisation(recording, step, places, finding)
    if finding.check in OF_RATE:
        yield from _rate_of_range_test(recording, step, places, finding)


def _wider_margins(
    recording: Recording, step: TrainingStep, places: Places, finding: Finding
) -> Iterator[tuple[Fix, Treatment]]:
    """The same safe form with a larger number: 1e-8 under a square keeps a loss finite, and its gradient useless."""
    origin = birth(recording)
    if origin is None or all(known.treatment != "safe-form" for known in finding.fixes):
        return
    for margin in MARGINS:
        fix = prescribe(origin, margin)
        treatment = safe_form(Case(step, recording, finding, fix, places), margin)
        if treatment is not None and fix.code not in {known.code for known in finding.fixes}:
            yield fix, treatment


def _rate_of_range_test(
    recording: Recording, step: TrainingStep, places: Places, finding: Finding
) -> Iterator[tuple[Fix, Treatment]]:
    """The learning rate at which the loss falls fastest, where the script's own is another."""
    arm = recording.arms.get(range_test.NAME)
    if arm is None or arm.failure or not recording.optimizers:
        return
    rate, own = float(arm.facts["suggested"]), float(arm.facts["lr"])
    if not rate > 0 or 1 / ANOTHER < rate / own < ANOTHER:
        return
    rate = float(f"{rate:.1g}")
    says = f"Set the learning rate to {rate:g}: in a range test {arm.facts['says']}."
    fix = Fix("lr-of-range-test", says, with_lr(recording.optimizers[0], rate), Reach.RUN)
    treatment = optimizer_line(Case(step, recording, finding, fix, places))
    if treatment is not None:
        yield fix, treatment


def written_elsewhere(recording: Recording, step: TrainingStep, again: Sequence[float]) -> Trial | None:
    """The trial of leaving out whatever else the loop does: the script's own losses beside those of a plain replay.

    None unless the two begin with the same loss and part within the captured steps, which are the same forward,
    backward, clipping and step on the same batches: then something else writes to the weights or the gradients.
    """
    series = recording.loss
    count = min(len(step.iterations), len(again))
    if series is None or count < 2 or len(step.optimizers) != 1:
        return None
    if series.steps[:count].tolist() != list(range(count)):
        return None
    own = [float(loss) for loss in series.values[: len(again)]]
    apart = [abs(one - other) / max(abs(one), _LEAST) for one, other in zip(own[:count], again, strict=False)]
    if not (apart[0] < SAME and max(apart[1:]) > DIFFERENT):
        return None
    bound = float(recording.facts.get("loss_lower_bound", -math.inf))
    verdict = decide(own, again, scale_of(bound, None, own, again))
    return Trial(verdict, tuple(own), tuple(again), len(again)) if verdict is Verdict.CURED else None


ELSEWHERE = Fix(
    "leave-weights-alone",
    "Find what writes to the weights or gradients besides backward, clipping and optimizer.step() (an average written "
    "back, a reset, a hand-made update, a hook): the same steps without it train.",
    reach=Reach.RUN,
)


def _wider_initialisation(
    recording: Recording, step: TrainingStep, places: Places, finding: Finding
) -> Iterator[tuple[Fix, Treatment]]:
    """The initialisation of all weights that are off scale, where the finding's own covers but the worst."""
    known = {fix.code for fix in finding.fixes if fix.treatment == "variance-scaling-init"}
    off = [found.layer for found in initialisation.scales(recording) if found.off != 1.0]
    wider = initialisation.fix(recording, off)
    if not known or not off or wider.code in known:
        return
    wider = replace(wider, says=f"Initialise all {len(off)} weights that are off scale, before the optimizer is made.")
    treatment = run_code(Case(step, recording, finding, wider, places))
    if treatment is not None:
        yield wider, treatment


def _plain_weights(recording: Recording, places: Places) -> Iterator[tuple[Fix, Treatment]]:
    """The weights as they are, where the model uses a function of them that limits what it can express."""
    graph = recording.graph
    found = [
        o
        for o in ([] if graph is None else graph.operations)
        if o.name in _NARROWING and [graph.values[i].origin for i in o.inputs if graph is not None] == ["parameter"]
    ]
    if not found:
        return
    first = found[0]
    where = f" ({first.file.rpartition('/')[2]}:{first.line})" if first.file else ""
    says = f"Use the weights of {_listed(found)} as they are: {first.name} limits what they can be{where}."
    yield Fix("plain-weights", says, "", Reach.MODEL), Treatment(lambda bench: _leave_out(bench, places, found))


def _listed(found: list[Operation]) -> str:
    names = list(dict.fromkeys(o.module or "the model" for o in found))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _leave_out(bench: Bench, places: Places, found: list[Operation]) -> None:
    exchanges = []
    for operation in found:
        original = places.module(operation.module)
        module = None if original is None else bench.copy_of(original)
        exchanges.append(Exchange(module, frozenset({operation.name}), _unless_weight))
    exchange_operations(bench, exchanges)


def _unless_weight(func: Any, args: Any, kwargs: Any) -> Any:
    given = first_argument(args, kwargs)
    return given if isinstance(given, nn.Parameter) else func(*args, **kwargs)
