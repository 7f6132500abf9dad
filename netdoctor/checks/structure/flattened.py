"""Predictions and targets that are flattened in different orders, so that each is compared with another one's counterpart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import comparisons, differences, line
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

_FLATTENING = frozenset({"view", "reshape", "flatten"})
_LAID_OUT = frozenset({"contiguous", "float", "long", "to"})  # what may stand between a flattening and the loss
_CALL = re.compile(r"([\w.\[\]]+)\.(view|reshape|flatten)\(")


@dataclass(frozen=True, slots=True)
class Crossed:
    """Two axes of a prediction, and the same two the other way round of its target, each merged into one."""

    flattening: Operation  # of the prediction
    given: tuple[int, ...]
    target: tuple[int, ...]


def crossed(recording: Recording) -> Iterator[Crossed]:
    """Every comparison of a prediction (a, b, ...) with a target (b, a, ...), both flattened to a·b, where a and b differ."""
    for comparison in (*comparisons(recording), *differences(recording)):
        one, other = (_merged(comparison.graph, v.index) for v in (comparison.prediction, comparison.target))
        if one is None or other is None:
            continue
        given, target = (comparison.graph.values[o.inputs[0]].shape for o in (one, other))
        if given[:2] == target[1::-1] and given[0] != given[1] and min(given[:2]) > 1:
            yield Crossed(one, given, target)


def torn_classes(recording: Recording) -> Iterator[Crossed]:
    """Every prediction (batch, classes, positions ...) laid out as rows of classes though the classes are not its last axis."""
    for comparison in comparisons(recording):
        made, aim = (comparison.graph.producer(v.index) for v in (comparison.prediction, comparison.target))
        if made is None or made.name not in _FLATTENING or aim is None or aim.name not in _FLATTENING:
            continue
        given, rows = comparison.graph.values[made.inputs[0]].shape, comparison.prediction.shape
        target = comparison.graph.values[aim.inputs[0]].shape
        wide = len(given) > 2 and len(rows) == 2 and rows[1] == given[1] != given[-1]
        if wide and target == (given[0], *given[2:]) and comparison.target.shape == rows[:1]:
            yield Crossed(made, given, target)


def torn(name: str, found: Crossed, recording: Recording) -> Finding:
    """What is said of classes that are torn apart, as an error of the check of this name."""
    source, last = line(recording, found.flattening), len(found.given) - 1
    order = ", ".join(map(str, (0, *range(2, last + 1), 1)))
    text = "" if source is None else source.text
    code = _CALL.sub(rf"\1.permute({order}).reshape(", text, count=1)
    return Finding(
        name,
        f"{found.flattening.name} makes rows of {found.given[1]} of {found.given}, whose classes are in dimension 1",
        Severity.ERROR,
        f"Each row then holds {found.given[1]} neighbours of one class, and not the scores of one position for all classes.",
        Location.at(source, found.flattening.module or None, found.flattening.name, step=0),
        (Evidence("size of dimension 1, and of each row", found.given[1], "=", found.given[1]),),
        (Fix("same-order", "Bring the classes to the end first.", code if code != text else "", Reach.MODEL),),
        first_step=0,
        share=1.0,
    )


def _merged(graph: StepGraph, value: int) -> Operation | None:
    """The view or reshape that merged the first two axes of what the loss is given; None where there is none."""
    made = graph.producer(value)
    while made is not None and made.name in _LAID_OUT and made.inputs:
        made = graph.producer(made.inputs[0])
    if made is None or made.name not in _FLATTENING or not made.inputs:
        return None
    given, result = graph.values[made.inputs[0]].shape, graph.values[made.outputs[0]].shape
    return made if len(given) > 1 and result[:1] == (given[0] * given[1],) else None


def finding(name: str, found: Crossed, recording: Recording) -> Finding:
    """What is said of it, as an error of the check of this name."""
    (a, b), source = found.given[:2], line(recording, found.flattening)
    text = "" if source is None else source.text
    code = _CALL.sub(r"\1.transpose(0, 1).\2(", text, count=1).replace(
        ".transpose(0, 1).view(", ".transpose(0, 1).reshape("
    )
    return Finding(
        name,
        f"predictions {found.given} and targets {found.target} are flattened in different orders",
        Severity.ERROR,
        f"The predictions run along their axis of {b} first, the targets along theirs of {a}: the lengths agree, and yet each "
        "prediction is compared with the target of another sample and position.",
        Location.at(source, found.flattening.module or None, found.flattening.name, step=0),
        (
            Evidence(
                "size of dimension 0 of the predictions, and of dimension 1 of the targets", a, "=", found.target[1]
            ),
        ),
        (Fix("same-order", "Bring both into one order first.", code if code != text else "", Reach.MODEL),),
        first_step=0,
        share=1.0,
    )
