"""A view or reshape where a transposition was meant, so that samples are mixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.structure.axes import code
from netdoctor.checks.structure.flattened import crossed, finding, torn_classes
from netdoctor.checks.structure.flattened import torn as rows_torn
from netdoctor.checks.structure.gradients import listed
from netdoctor.checks.structure.torn import Torn, faults
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class WrongReshape(Check):
    """A view or reshape moves a size to another place, which mixes samples (or positions) instead of swapping axes.

    What it is: `x.view(time, batch, features)` of a tensor of shape (batch, time, features); `hidden.view(batch, -1)` of
    the (directions, batch, units) of an LSTM; heads merged or split without a transposition. A view only cuts the same
    sequence of numbers at other places; swapping axes takes `transpose` or `permute`.
    Why it hurts: parts of different samples end up in one row. What belongs together is torn apart before the first
    layer, and no training can mend it.
    How it is decided: on the shapes of the captured step. An axis is lost in a view or reshape, and the result has one of
    the same size that reaches over the borders of the given axes; the loss depends on the result. Or a prediction
    (time, batch, ...) and its target (batch, time, ...) are both flattened, so that their lengths agree and their orders
    do not; or one with its classes in dimension 1 is laid out as rows of classes. Lines of one module that tear the same
    axes are one fault where their results are multiplied (queries, keys, values), or one undoes the other.
    When it stays silent: flattening, splitting and merging neighbouring axes (heads, patches, groups), transpose and
    permute, axes of size 1.
    Fix: transpose or permute.
    Sources: advice B-7; Karpathy's recipe (view and permute mixed up; backprop to chart dependencies).
    """

    name = "wrong-reshape"
    explains = NO_LEARNING | NO_SIGNAL | {"cross-sample-leakage", "causal-leak", "label-input-mismatch"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        told = [finding(self.name, found, recording) for found in crossed(recording)]
        told += [rows_torn(self.name, found, recording) for found in torn_classes(recording)]
        if told:
            yield told[0]
            return
        for fault in faults(recording):
            yield self._finding(recording, fault)

    def _finding(self, recording: Recording, fault: list[Torn]) -> Finding:
        torn, sources = fault[0], [line(recording, torn.operation) for torn in fault]
        name, samples = torn.operation.name, any(0 in torn.axes for torn in fault)
        low, high = sorted(torn.axes)
        what = "numbers of different samples" if samples else "numbers of different positions and channels"
        more = sorted({source.line for source in sources if source is not None and source != sources[0]})
        also = f" Lines {listed([str(number) for number in more])} do the same." if len(more) > 1 else ""
        also = f" Line {more[0]} does the same." if len(more) == 1 else also
        says = f"Swap the axes{' in each of these lines' if more else ''}."
        codes = [
            code(source.text if source else "", torn.given, torn.made, torn.axes)
            for torn, source in zip(fault, sources, strict=True)
        ]
        return Finding(
            self.name,
            f"{name} makes {torn.made} of {torn.given}: it mixes {'samples' if samples else 'positions'}",
            Severity.ERROR if samples else Severity.WARNING,
            f"A size is moved, but {name} does not move numbers along with it, so each row now holds "
            f"{what}. Swapping axes takes transpose({low}, {high}).{also}",
            Location.at(sources[0], torn.operation.module or None, name, step=0),
            (Evidence(f"size of dimension {torn.axes[1]} after {name}", *self._sizes(torn)),),
            (Fix("transpose", says, "\n".join(codes), Reach.MODEL),),
            first_step=0,
            share=1.0,
        )

    def _sizes(self, torn: Torn) -> tuple[float, str, float]:
        return torn.made[torn.axes[1]], "=", torn.given[torn.axes[0]]
