"""A recording and checks → a report. A check that crashes is a row of the report; the others go on."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from netdoctor import catalogue, ranking
from netdoctor.check import Check
from netdoctor.finding import Abstention, Finding, Severity, spelled
from netdoctor.recording import Arm, Recording, Series
from netdoctor.report import Crash, Experiment, Report

_FINITE_GROWTH = (
    3.0  # decades of growth or shrinkage that batchnorm-masking's experiment calls a failure (1e3, catalogue)
)


@dataclass(slots=True)
class _Outcome:
    """What the checks said, sorted by kind."""

    findings: list[Finding] = field(default_factory=list)
    abstentions: list[Abstention] = field(default_factory=list)
    crashes: list[Crash] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)


def diagnose(
    recording: Recording,
    checks: Iterable[Check],
    ignore: Sequence[str] = (),
    crashes: Sequence[Crash] | None = None,
    select: Sequence[str] = (),
) -> Report:
    """Run every check on the recording, and rank what they found.

    `ignore` and `select` hold NAME or NAME:LAYER-GLOB; what the first covers, or the second leaves out, is listed apart
    and makes nothing sick. `crashes` are faults from before, by default those of loading the catalogue. The verdict is
    "sick" when a finding graver than advice stands, else "not observed" when no backward pass was seen, else "healthy".
    """
    known = list(checks)
    outcome = _Outcome()
    for check in known:
        _run(check, recording, outcome)
    wanted: list[Finding] = []
    ignored: list[Finding] = []
    for finding in outcome.findings:
        counts = catalogue.is_selected(finding, select) and not catalogue.is_ignored(finding, ignore)
        (wanted if counts else ignored).append(finding)
    findings = ranking.rank(wanted, known)
    observed = recording.counts.get("backward", 0) > 0
    before = catalogue.crashes() if crashes is None else tuple(crashes)
    faults = tuple(
        Crash(f.where, f.error if f.count == 1 else f"{f.error} ({f.count} times)") for f in recording.faults
    )
    header = recording.header
    return Report(
        target=header.target,
        verdict=_verdict(findings, observed),
        steps=recording.steps,
        findings=findings,
        ignored=ranking.rank(ignored, known),
        experiments=tuple(experiments(recording)),
        abstentions=tuple(outcome.abstentions),
        crashes=(*before, *faults, *outcome.crashes),
        passed=tuple(sorted(outcome.passed)) if observed else (),
        blind_spots=tuple(recording.blind_spots),
        netdoctor=header.netdoctor,
        torch=header.torch,
        ended=header.ended,
        observing_s=header.observing_s,
        experiments_s=float(sum(arm.seconds for arm in recording.arms.values())),
        losses={label: _ends(series) for label, series in recording.losses.items() if series.values.size},
    )


def _verdict(findings: Iterable[Finding], observed: bool) -> str:
    if any(finding.severity is not Severity.ADVICE for finding in findings):
        return "sick"
    return "healthy" if observed else "not observed"


def _ends(series: Series) -> tuple[float, float]:
    return float(series.values[0]), float(series.values[-1])


def _run(check: Check, recording: Recording, outcome: _Outcome) -> None:
    """One check, contained. What it found before it crashed is kept."""
    said = 0
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # NaN in a user's numbers is no news for the user's terminal
            for item in check.judge(recording):
                said += 1
                if isinstance(item, Finding):
                    _add(_dated(_in_words(replace(item, check=check.name)), recording), outcome.findings)
                elif isinstance(item, Abstention):
                    outcome.abstentions.append(Abstention(check.name, spelled(item.reason)))
                else:
                    raise TypeError(f"judge gave {type(item).__name__}, which is neither a Finding nor an Abstention")
    except Exception as error:
        outcome.crashes.append(Crash(check.name, _tail(error)))
        said += 1
    if not said:
        outcome.passed.append(check.name)


def _add(found: Finding, findings: list[Finding]) -> None:
    """Once: a closure that is evaluated several times in a step shows the same thing at the same line each time."""
    keys = ((f.check, f.title, f.location, f.places) for f in findings)
    if (found.check, found.title, found.location, found.places) not in keys:
        findings.append(found)


def _dated(found: Finding, recording: Recording) -> Finding:
    """With the step in which its line first ran, where that is in a later part of the training: checks of graphs say 0."""
    place = found.location
    graph = recording.graph_at(place.file, place.line)
    if (
        graph is None
        or graph.step == 0
        or place.step != 0
        or found.first_step
        or not graph.holds(place.file, place.line)
    ):
        return found
    return replace(found, location=replace(found.location, step=graph.step), first_step=graph.step)


def _in_words(found: Finding) -> Finding:
    """The finding with its numbers as they are read, in all that is prose."""
    fixes = tuple(replace(fix, says=spelled(fix.says)) for fix in found.fixes)
    return replace(found, title=spelled(found.title), explanation=spelled(found.explanation), fixes=fixes)


def _tail(error: Exception) -> str:
    """The exception and the innermost line that raised it."""
    message = "".join(traceback.format_exception_only(type(error), error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    return f"{message} ({frames[-1].filename}:{frames[-1].lineno})" if frames else message


def experiments(recording: Recording) -> Iterator[Experiment]:
    """What the arms say, one row per experiment, in words with their numbers."""
    arms = recording.arms
    own = [arm for name, arm in arms.items() if name == "overfit/own" or name.startswith("overfit/adam")]
    trials = {name.removeprefix("trial/"): arm for name, arm in arms.items() if name.startswith("trial/")}
    if own:
        yield _overfit(own, recording)
    if trials:
        yield _trials(trials)
    if "batchnorm/bypassed" in arms:
        yield _batchnorm(arms["batchnorm/bypassed"])
    for name, arm in arms.items():
        if name.partition("/")[0] not in {"overfit", "trial", "batchnorm"}:
            verdict = "could not run" if arm.failure else str(arm.facts.get("verdict", "passed"))
            yield Experiment(name, verdict, arm.failure or spelled(str(arm.facts.get("says", _course(arm)))))


def _overfit(arms: Sequence[Arm], recording: Recording) -> Experiment:
    name = "overfit-tiny-batch"
    ran = [arm for arm in arms if not arm.failure]
    if not ran:
        return Experiment(name, "could not run", arms[0].failure)
    reached = [arm for arm in ran if arm.facts.get("reached")]
    shown = reached[0] if reached else min(ran, key=lambda arm: _number(arm, "best"))
    samples = f"{_number(shown, 'samples'):.0f} samples" if "samples" in shown.facts else "a tiny batch"
    numbers = f"loss {_number(shown, 'start'):.3g} → {_number(shown, 'best'):.3g} in {len(shown.losses)} steps"
    with_what = _optimizer(shown, recording)
    own = next((arm for arm in ran if arm.name == "overfit/own"), None)
    blocked = f"; {own.facts['class']}: {own.facts['why']}" if own is not None and own.facts.get("class") else ""
    if not reached:
        tried = "" if len(ran) == 1 else f", the best of {len(ran)} optimizer settings"
        says = f"{samples} could not be fitted: {numbers} with {with_what}{tried}{blocked}"
        return Experiment(name, "failed", spelled(says))
    says = f"{samples} fitted: {numbers} with {with_what}"
    if own is not None and own is not shown:
        says += f"; the script's own optimizer only reached {_number(own, 'best'):.3g}{blocked}"
    return Experiment(name, "passed", spelled(says))


def _optimizer(arm: Arm, recording: Recording) -> str:
    if arm.name != "overfit/own":
        return f"Adam at {arm.name.rpartition(' ')[2]}"
    type_ = recording.optimizers[0].type if recording.optimizers else "the script's optimizer"
    return f"{type_} at {_number(arm, 'lr'):g}" if "lr" in arm.facts else type_


def _trials(arms: dict[str, Arm]) -> Experiment:
    """The learning-rate trials: failed when another rate loses 30 % of the loss where the script's own loses under 10 %.

    The limits are those of learning-rate-too-high and learning-rate-too-low.
    """
    name = "learning-rate-trials"
    ran = {label: arm for label, arm in arms.items() if not arm.failure and len(arm.losses)}
    if not ran:
        return Experiment(name, "could not run", next(iter(arms.values())).failure or "no steps were taken")
    ends = {label: _level(arm) for label, arm in ran.items()}
    best = min(ends, key=lambda label: ends[label])
    control, start = ends.get("control", ends[best]), float(ran[best].losses[0])
    failed = ends[best] <= 0.7 * start and control > 0.9 * start
    named = {label: "as it is" if label == "control" else label.replace("lr x", "lr ×") for label in ran}
    says = "; ".join(f"{named[label]}: {_course(arm)}" for label, arm in ran.items())
    return Experiment(name, "failed" if failed else "passed", spelled(says))


def _batchnorm(arm: Arm) -> Experiment:
    name = "batchnorm-bypass"
    if arm.failure:
        return Experiment(name, "could not run", arm.failure)
    forward, backward = (_number(arm, f"{way}_decades", 0.0) for way in ("forward", "backward"))
    if not arm.facts.get("finite", True):
        return Experiment(name, "failed", "without its BatchNorm the network gives NaN or Inf")
    says = f"without BatchNorm the signal changes by {forward:+.1f} decades over depth, the gradient by {backward:+.1f}"
    return Experiment(name, "failed" if max(abs(forward), abs(backward)) > _FINITE_GROWTH else "passed", says)


def _course(arm: Arm) -> str:
    losses = arm.losses
    return f"loss {losses[0]:.3g} → {_level(arm):.3g} in {len(losses)} steps" if len(losses) else "no steps"


def _level(arm: Arm) -> float:
    """The median of the last fifth; infinite when the arm ended in NaN or Inf."""
    tail = arm.losses[-max(1, len(arm.losses) // 5) :]
    return float(np.median(tail)) if np.isfinite(tail).all() else float("inf")


def _number(arm: Arm, fact: str, default: float = float("nan")) -> float:
    return float(arm.facts.get(fact, default))
