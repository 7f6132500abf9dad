"""Treatments of the loss: its sign, its reduction, the shapes that it compares, and what stands before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from netdoctor.capture.functions import function_name, plain
from netdoctor.capture.tape import Entry
from netdoctor.checks.loss.comparisons import comparisons
from netdoctor.checks.loss.output_ranges import RANGES
from netdoctor.checks.loss.renormalised import renormalised
from netdoctor.checks.structure.axes import moved as axes_moved
from netdoctor.checks.structure.flattened import crossed, torn_classes
from netdoctor.checks.structure.torn import faults
from netdoctor.experiments.loss_terms import BINARY_LOSSES, DIFFERENCES
from netdoctor.experiments.treatments.answers import squashed_twice
from netdoctor.experiments.treatments.operations import (
    Exchange,
    exchange_on_line,
    exchange_on_lines,
    exchange_operations,
    passing,
)
from netdoctor.experiments.treatments.optimization import scale_losses
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment, first_argument
from netdoctor.graph import Operation

_OUTPUTS = frozenset(RANGES)
_RESHAPES = frozenset({"view", "reshape"})
_CUTS = frozenset({"detach", "detach_", "data"})
_COMPARING = DIFFERENCES | BINARY_LOSSES | {"sub"}


def drop_minus_sign(_: Case) -> Treatment:
    """The loss times -1. The control arm, which goes down its minus, is told as the loss itself."""
    return Treatment(partial(scale_losses, -1.0), control_unit=-1.0)


def mean_reduction(case: Case) -> Treatment | None:
    """The loss divided by the size of the batch."""
    graph = case.graph
    shapes = [] if graph is None else [graph.values[i].shape for o in graph.loss_operations() for i in o.inputs]
    size = max((shape[0] for shape in shapes[:8] if shape), default=1)
    return Treatment(partial(scale_losses, 1 / size), unit=float(size)) if size > 1 else None


def batch_mean(case: Case) -> Treatment | None:
    """A divergence as many times as large as it has classes."""
    found = next((c for c in comparisons(case.recording) if c.operation.name == "kl_div"), None)
    classes = 1 if found is None else prod(found.prediction.shape[1:])
    return Treatment(partial(scale_losses, float(classes)), unit=1 / classes) if classes > 1 else None


def drop_output_activation(case: Case) -> Treatment | None:
    """Without the activation that stands before the loss: the finding's own, else the last one of the captured step."""
    own = case.finding.location.operation or ""
    names = frozenset({own}) if own in _OUTPUTS else _OUTPUTS
    taken_for_scores = next(renormalised(case.recording), None) if case.finding.check == "double-softmax" else None
    last = _last_output(case, names) if taken_for_scores is None else taken_for_scores.maker
    if last is None:
        return None
    original = case.places.module(last.module)
    line = (last.file, last.line) if last.file else None

    def apply(bench: Bench) -> None:
        module = None if original is None else bench.copy_of(original)
        exchanges = [Exchange(None, frozenset({last.name}), passing, line)]
        if module is not None:
            exchanges.append(Exchange(module, frozenset({last.name}), passing, line))
        exchange_operations(bench, exchanges)

    if last.name in ("softmax", "sigmoid"):
        return Treatment(apply, beside=_as_meant, measure=squashed_twice(case.step) if _twice(case, last) else None)
    return Treatment(apply)


def _twice(case: Case, last: Operation) -> bool:
    """Whether the loss squashes by itself what the operation has squashed: no other loss takes raw scores."""
    graph = case.graph
    names = set() if graph is None else {operation.name for operation in graph.loss_operations()}
    return bool(names & {"cross_entropy", "binary_cross_entropy_with_logits"})


def _as_meant(bench: Bench) -> None:
    """Beside the control's own loss, note that of the probabilities which it squashes twice: the treated arm's unit."""

    def noting(func: Any, args: Any, kwargs: Any) -> Any:
        given, target = first_argument(args, kwargs), args[1] if len(args) > 1 else kwargs["target"]
        meant = F.binary_cross_entropy if plain(function_name(func)) in BINARY_LOSSES else _of_probabilities
        with torch.no_grad():
            bench.measured.append(float(meant(given, target)))
        return func(*args, **kwargs)

    names = frozenset({"cross_entropy", "binary_cross_entropy_with_logits"})
    exchange_operations(bench, [Exchange(None, names, noting)])


def _of_probabilities(given: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(given.clamp_min(torch.finfo(given.dtype).tiny).log(), target)


def attach_graph(case: Case) -> Treatment | None:
    """Without the `detach` or `.data` of the finding's line."""
    place = case.finding.location
    if place.operation not in _CUTS or not place.file or place.line is None:
        return None
    line = (place.file, place.line)
    return Treatment(lambda bench: exchange_on_line(bench, _CUTS, passing, line))


def transpose(case: Case) -> Treatment | None:
    """Axes that are swapped, in place of the view or reshape on the finding's line that tears them apart, and of all others
    that are the same mistake."""
    place = case.finding.location
    if not place.file or place.line is None:
        return None
    line = place.file, place.line
    found = next((fault for fault in faults(case.recording) if any(torn.line == line for torn in fault)), [])
    lines = list(dict.fromkeys([line, *(torn.line for torn in found)]))

    def change(call: Any, args: Any, kwargs: Any) -> Any:
        given, made = first_argument(args, kwargs), call(*args, **kwargs)
        axes = axes_moved(given.shape, made.shape)
        if axes is None:
            return made
        if axes[1] < axes[0]:
            return given.transpose(*axes).reshape(made.shape)
        sizes = list(made.shape)
        sizes[axes[0]], sizes[axes[1]] = sizes[axes[1]], sizes[axes[0]]
        return given.reshape(sizes).transpose(*axes)

    return Treatment(lambda bench: exchange_on_lines(bench, _RESHAPES, change, lines))


def same_order(case: Case) -> Treatment | None:
    """The axes of the prediction in the order of its target's, before both are flattened."""
    torn = next(torn_classes(case.recording), None)
    found = next(crossed(case.recording), torn)
    if found is None or not found.flattening.file:
        return None

    def change(call: Any, args: Any, kwargs: Any) -> Any:
        given, made = first_argument(args, kwargs), call(*args, **kwargs)
        if not (given.requires_grad and given.dim() == len(found.given)):
            return made
        return (given.movedim(1, -1) if found is torn else given.transpose(0, 1)).reshape(made.shape)

    line = found.flattening.file, found.flattening.line
    return Treatment(lambda bench: exchange_on_line(bench, _RESHAPES | {"flatten"}, change, line))


def _last_output(case: Case, names: frozenset[str]) -> Operation | None:
    graph = case.graph
    found = [] if graph is None else graph.loss_operations()
    return next((operation for operation in found if operation.name in names), None)


def same_shape(case: Case) -> Treatment:
    """The second of two compared tensors in the shape of the first, where they hold equally many numbers."""

    def change(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            one, other = args[0], args[1]
            if one.shape != other.shape and one.numel() == other.numel():
                args = (one, other.reshape(one.shape), *args[2:])
        return call(*args, **kwargs)

    def rewritten(entry: Entry) -> Entry:
        if entry.module is not None or entry.call is None or plain(entry.name) not in _COMPARING:
            return entry
        return replace(entry, call=partial(change, entry.call))

    return Treatment(lambda bench: bench.rewrite(rewritten))


TREATMENTS: dict[str, Maker] = {
    "drop-minus-sign": drop_minus_sign,
    "mean-reduction": mean_reduction,
    "batchmean": batch_mean,
    "remove-activation": drop_output_activation,
    "remove-softmax": drop_output_activation,
    "remove-sigmoid": drop_output_activation,
    "attach-graph": attach_graph,
    "transpose": transpose,
    "same-order": same_order,
    "match-shapes": same_shape,
}
