"""A softmax inside of the net that is nearly one-hot before anything was learned: which it is, and what smaller scores show."""

from __future__ import annotations

import math

import numpy as np

from netdoctor.checks.signal import outcome
from netdoctor.checks.training.lr_trials import level
from netdoctor.checks.units.hidden import reaches_weights
from netdoctor.checks.units.scaled_line import fix, line_of
from netdoctor.checks.units.score_scale import scores_of
from netdoctor.finding import Certainty, Evidence, Finding, Location, Severity, Trial, Verdict
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Arm, Recording
from netdoctor.trend import Trend

FIRST = "scores/in the first step"  # measured on a copy, without masked keys
AS_IT_IS, SCALED = "scores/as it is", "scores/scaled"  # both from the start of the training, on its batches
PASSED = (
    0.5  # of the gradient that an even softmax passes, as of other saturated functions: scores of scale 1 pass 0.7 to 1
)
LONG = 60  # steps: scores of the right size are far ahead by then, or it is not they that matter
HALF, MUCH, TWICE = (
    0.5,
    0.3,
    2.0,
)  # of the loss left; of it lost, and that this many times: what a cure reaches (verdict.py)
BEHIND = 1.5  # times: the scaled arm is ahead of the whole run, which had more steps, by as much as this
_CHOOSES = frozenset(
    {"argmax", "argmin", "topk", "multinomial", "max", "sort"}
)  # experts, codes and samples: hard by intent


def candidates(recording: Recording) -> list[Operation]:
    """The softmaxes of the first step that layers or products read and that seem to pass too little; one per module and line.

    Masked keys count as seen here: whether it is they that make a row one-hot is measured on a copy.
    """
    graph = recording.graph
    if graph is None or graph.step > 0 or recording.origin is not None:
        return []
    found = {(o.module, o.file, o.line): o for o in reversed(graph.named({"softmax"})) if _suspect(graph, o)}
    return sorted(found.values(), key=lambda operation: operation.index)


def passed(graph: StepGraph, operation: Operation) -> float:
    """What a softmax passes of the gradient, as a share of what an even one passes: (1 - mean of sum p²) / (1 - 1/n)."""
    out, n = graph.values[operation.outputs[0]], _keys(graph, operation)
    return (1 - n * (out.mean**2 + out.std**2)) / (1 - 1 / n) if n > 1 else math.nan


def finding(check: str, recording: Recording, trend: Trend) -> Finding | None:
    """The finding that smaller scores train far better; without trials, that training is hurt where no mask explains it."""
    if recording.facts.get("moving_target") or recording.facts.get("several_optimizers"):
        return None
    sharp = _sharp(recording)
    arms = recording.arms.get(AS_IT_IS), recording.arms.get(SCALED)
    if not sharp:
        return None
    if arms[0] is None or arms[1] is None or min(len(arms[0].losses), len(arms[1].losses)) < LONG:
        return _told(check, recording, trend, sharp, None) if outcome.hurt(trend) else None
    ahead = _ahead(arms[0], arms[1], trend, float(recording.facts.get("loss_lower_bound", 0.0)))
    return _told(check, recording, trend, sharp, (arms[0], arms[1])) if ahead else None


def _sharp(recording: Recording) -> list[Operation]:
    """The candidates that are sharp where masked keys are left out; without a copy, those of which no key is masked."""
    found, graph, first = candidates(recording), recording.graph, recording.arms.get(FIRST)
    if first is not None and not first.failure:
        return [o for o in found if f"std {o.file}:{o.line}" in first.facts]
    return [o for o in found if graph is not None and not scores_of(graph, o).masked]


def _ahead(control: Arm, treated: Arm, trend: Trend, bound: float) -> bool:
    """Whether the scaled arm is far ahead of the arm as it is and, where the training works, of what the whole run came to."""
    floor = bound if math.isfinite(bound) else 0.0
    curves = control.losses[: len(treated.losses)] - floor, treated.losses - floor
    if not all(bool((c >= 0).all() and np.isfinite(c).all()) for c in curves):
        return False
    start, end = float(curves[0][0]), trend.end - floor
    own, left = (level(Arm("", curve)) for curve in curves)
    if not start > 0:
        return False
    lost, most = (
        1 - left / start,
        max(1 - own / start, 1 - end / start),
    )  # NaN: no end is known, and the arms tell alone
    halved = left <= HALF * own and not left * BEHIND > end
    far = lost >= TWICE * (1 - own / start)
    if outcome.hurt(trend):
        return far and lost >= outcome.LITTLE
    return lost >= MUCH and (halved or (far and not lost < BEHIND * most))


def _told(
    check: str, recording: Recording, trend: Trend, sharp: list[Operation], arms: tuple[Arm, Arm] | None
) -> Finding:
    graph, measured = recording.graph, recording.arms.get(FIRST)
    facts = {} if measured is None else measured.facts
    assert graph is not None
    stds = [(o, float(facts.get(f"std {o.file}:{o.line}", scores_of(graph, o).std))) for o in sharp]
    first, std = stds[0]
    scores = scores_of(graph, first)
    share = float(facts.get(f"passed {first.file}:{first.line}", passed(graph, first)))
    says = f"Their standard deviation is {std:.3g} along a row (about 1 where training starts well), so that each row picks one "
    says += f"entry before anything was learned, and what makes the scores gets next to no gradient. {scores.cause} "
    return Finding(
        check,
        f"the softmax in {first.module or 'the model'} is nearly one-hot from the start: its scores are far too large",
        Severity.ERROR if outcome.hurt(trend) else Severity.WARNING,
        says + _outcome(arms, trend),
        Location.at(line_of(scores.culprit or first), first.module or None, operation="softmax", step=0),
        (Evidence("gradient that the softmax passes, of an even one's", 100 * share, "<", 100 * PASSED, "%"),),
        (fix(graph, stds, _trial(*arms) if arms else None),),
        Certainty.PROVEN if arms else Certainty.MEASURED,
        first_step=0,
        places=tuple(dict.fromkeys(o.module for o in sharp if o.module)),
        share=1 - share,
    )


def _outcome(arms: tuple[Arm, Arm] | None, trend: Trend) -> str:
    if arms is None:
        return outcome.words(trend)
    ends = f"{level(arms[0]):.3g} as it is, {level(arms[1]):.3g} with scores of scale 1"
    return f"On a copy, from the same weights on the same batches, {len(arms[1].losses)} steps end at {ends}."


def _trial(control: Arm, treated: Arm) -> Trial:
    curves = tuple(map(float, control.losses)), tuple(map(float, treated.losses))
    return Trial(Verdict.CURED, *curves, steps=len(treated.losses), seconds=control.seconds + treated.seconds)


def _suspect(graph: StepGraph, operation: Operation) -> bool:
    if not (operation.inputs and operation.outputs and operation.file):
        return False
    out = graph.values[operation.outputs[0]]
    inside = out.trained and out.requires_grad and reaches_weights(graph, operation)
    if not inside or not passed(graph, operation) < PASSED:  # NaN: not measured
        return False
    readers = [o.name for v in (*operation.inputs[:1], *operation.outputs) for o in graph.consumers(v)]
    return _CHOOSES.isdisjoint(readers) and not scores_of(graph, operation).noisy


def _keys(graph: StepGraph, operation: Operation) -> int:
    shape, given = graph.values[operation.outputs[0]].shape, operation.attributes
    dim = next((given[name] for name in ("dim", "axis", "1") if name in given), -1)
    return shape[int(dim)] if shape and -len(shape) <= int(dim) < len(shape) else 0
