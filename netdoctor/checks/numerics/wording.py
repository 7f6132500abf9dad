"""The parts of a finding that all checks on non-finite values share."""

from __future__ import annotations

import math

from netdoctor.checks.numerics import operations as op
from netdoctor.checks.numerics.birth import recovered
from netdoctor.checks.numerics.history import HUGE, diverged, story
from netdoctor.checks.numerics.safe_forms import prescribe, why
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Severity
from netdoctor.recording import Operand, Origin, Recording, spoken

# What follows from a NaN, whatever its origin: nothing is learned any more.
CONSEQUENCES = frozenset(
    {"loss-not-decreasing", "loss-diverging", "unstable-loss", "cannot-overfit-tiny-batch", "input-independent-output"}
)


def from_operation(check: str, recording: Recording, origin: Origin) -> Finding:
    """The finding about an operation that made the first NaN or Inf, forward or backward."""
    symptom = diverged(recording, origin)
    return Finding(
        check,
        _title(origin),
        severity(recording, origin),
        _explanation(recording, origin),
        location(origin),
        _evidence(origin),
        (prescribe(origin),) if origin.operation else (_look(origin),),
        Certainty.INFERRED if symptom or not origin.reproduced else Certainty.MEASURED,
        origin.step,
    )


def severity(recording: Recording, origin: Origin) -> Severity:
    """An error, unless training went on with finite losses."""
    return Severity.WARNING if recovered(recording, origin) else Severity.ERROR


def location(origin: Origin) -> Location:
    """Module, operation, the user's line, step and samples of an origin."""
    operation = None if origin.phase == "input" else op.plain(origin.operation) or None
    return Location.at(origin.source, origin.module or None, operation, origin.step, origin.samples)


def place(origin: Origin) -> str:
    """Where it is, for a sentence: " in encoder.0 (call 2)", or "" outside of any module."""
    if not origin.module:
        return ""
    return f" in {spoken(origin.module)}" + (f" (call {origin.call + 1})" if origin.call else "")


def describe(items: tuple[Operand, ...]) -> str:
    """The operands with shape, format, range and counts, one sentence each."""
    return " ".join(_operand(item, index) for index, item in enumerate(items) if item.shape or item.dtype)


def samples_of(origin: Origin) -> str:
    """A sentence that lists the guilty samples, or "" when unknown."""
    if not origin.samples:
        return ""
    more = ", …" if len(origin.samples) >= 16 else ""  # capture keeps 16 at most
    return f"Guilty samples of the batch: {', '.join(map(str, origin.samples))}{more}."


def joined(*sentences: str) -> str:
    """Sentences that are not empty, as a paragraph."""
    return " ".join(sentence for sentence in sentences if sentence)


def _title(origin: Origin) -> str:
    what = op.plain(origin.operation) or "the forward pass"
    if origin.phase == "backward":
        what = f"the gradient of {op.plain(origin.operation)}" if origin.operation else "the backward pass"
    line = f": {origin.source.text}" if origin.source is not None and origin.source.text else ""
    return f"{what}{place(origin)} makes the first {origin.kind} at step {origin.step}{line}"


def _explanation(recording: Recording, origin: Origin) -> str:
    reason = why(origin) if origin.operation else ""
    note = f"({origin.note})" if origin.note and not origin.reproduced else ""
    line = ""
    if origin.phase == "backward" and origin.source is not None:
        line = "The forward pass is finite; this line recorded the operation whose backward breaks."
    zeros = _zeros(origin)
    run_up = story(recording, origin)
    verdict = (
        "That is a divergence which ends here, not a faulty operation."
        if run_up and diverged(recording, origin)
        else ""
    )
    return joined(reason, line, describe(origin.inputs), zeros, samples_of(origin), run_up, verdict, note)


def _zeros(origin: Origin) -> str:
    """Where the zeros come from that the operation cannot bear."""
    if not origin.born:
        return ""
    at = origin.born_source
    where = "" if at is None or at == origin.source else f", in line {at.line}: {at.text}"
    return (
        f"Its zeros are first made by {op.plain(origin.born)}{where}."
        if where or origin.born != origin.upstream
        else ""
    )


def _operand(item: Operand, index: int) -> str:
    known = item.name not in {"", "input"}
    name = item.name[0].upper() + item.name[1:] if known and " " in item.name else item.name
    name = name if known else "Its input" if index == 0 else f"Operand {index + 1}"
    shape = "×".join(map(str, item.shape)) or "scalar"
    counts = [f"{n} {what}" for n, what in ((item.zeros, "zeros"), (item.nans, "NaN"), (item.infs, "Inf")) if n]
    held = f", with {', '.join(counts)}" if counts else ""
    span = f" lies between {item.low:.3g} and {item.high:.3g}" if math.isfinite(item.low) else " holds no finite value"
    return f"{name} ({shape}, {item.dtype.rpartition('.')[2] or 'float32'}){span}{held}."


def _evidence(origin: Origin) -> tuple[Evidence, ...]:
    """The numbers that show why: what came out, and which values went in that the operation cannot bear."""
    name = op.plain(origin.operation) or "the operation"
    found = []
    if origin.output is not None and origin.phase != "backward":
        found.append(Evidence(f"non-finite values made by {name}", origin.output.nans + origin.output.infs, ">", 0.0))
    for index, item in enumerate(origin.inputs):
        which = f"{item.name or f'operand {index + 1}'} of {name}"
        counts = ((item.zeros, "zeros"), (item.nans, "NaN"), (item.infs, "Inf"))
        found += [Evidence(f"{what} in {which}", float(n), ">", 0.0) for n, what in counts if n]
        found += _range(which, item, origin)
    return tuple(found) or (Evidence(f"first step with {origin.kind}", float(origin.step), "≥", 0.0),)


def _range(which: str, item: Operand, origin: Origin) -> list[Evidence]:
    limit = op.EXP_LIMIT[op.dtype_of(origin)]
    largest = max(abs(item.low), abs(item.high))
    if largest > HUGE:
        return [Evidence(f"largest magnitude in {which}", largest, ">", HUGE)]
    if op.canonical(origin.operation) in {"exp", "expm1", "sinh"} and largest > 0.99 * limit:
        return [Evidence(f"largest magnitude in {which}", largest, ">", limit)]
    return [Evidence(f"smallest value in {which}", item.low, "<", 0.0)] if item.low < 0 else []


def _look(origin: Origin) -> Fix:
    """Where the operation is not known: how to find it."""
    return Fix(
        "find-operation",
        f"Find the operation{place(origin)} that makes it: look at its inputs in the step before.",
        "torch.autograd.set_detect_anomaly(True)  # at the start of the script; slow, for this search only",
    )
