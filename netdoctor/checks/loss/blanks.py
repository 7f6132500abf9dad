"""CTC targets that have the blank among their symbols."""

from __future__ import annotations

from collections.abc import Iterator

from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

_CODE = "targets = targets + 1  # the symbols begin at 1, for 0 is the blank; the model has one output more"


def blanks(check: str, recording: Recording) -> Iterator[Finding]:
    """The first ctc_loss whose targets hold the blank, if any."""
    for graph in graphs(recording):
        for operation in graph.named_behind({"ctc_loss"}):
            if _holds_blank(graph, operation, recording):
                yield _finding(check, recording, operation)
                return


def _holds_blank(graph: StepGraph, operation: Operation, recording: Recording) -> bool:
    targets, blank = graph.values[operation.inputs[1]], _blank(operation)
    if blank not in (targets.low, targets.high):
        return False
    series = recording.loss
    return len(targets.shape) == 1 or (series is not None and bool((series.values < 0).any()))


def _blank(operation: Operation) -> int:
    """The argument after log_probs, targets and two lengths."""
    return int(operation.attributes.get("blank", operation.attributes.get("4", 0)))


def _finding(check: str, recording: Recording, operation: Operation) -> Finding:
    blank = _blank(operation)
    return Finding(
        check,
        f"a symbol of the targets of ctc_loss has the number of its blank, {blank}",
        Severity.ERROR,
        "CTC takes this number for the pause between symbols: the symbol is never read, and the loss, which is no probability "
        "any more, can fall below 0.",
        Location.at(line(recording, operation), None, operation.name, step=0),
        (Evidence("symbol of the targets", blank, "=", blank),),
        (Fix("symbols-from-1", "Number the symbols so that none is the blank.", _CODE, Reach.RUN),),
        first_step=0,
        share=1.0,
    )
