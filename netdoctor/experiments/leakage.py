"""Does a sample's output depend on the other samples of its batch, or a position's output on what comes after it?"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.modes import in_evaluation
from netdoctor.capture.step import Copies, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant, Entry, Leaf, Slot
from netdoctor.capture.tree import substitute, tensors
from netdoctor.errors import CannotReplayError, MisuseError, why_it_failed
from netdoctor.experiments.loss_terms import watched_terms
from netdoctor.experiments.passes import ROUNDING, Kept, Pass, Subject, differ, first_difference
from netdoctor.experiments.replacing import alone, other_future
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.tiny_batch import rewrite
from netdoctor.finding import Location
from netdoctor.recording import Arm, Recording

SAMPLES, POSITIONS = "leakage/samples", "leakage/positions"
BATCHES = 3  # captured ones in all of which a target must be the shifted input
SHIFTED = 0.98  # of the positions: a loader may change a few (masks, noise)
COPIED = 0.9  # of the positions: a target that is the input as it stands is none to be predicted
LONG = 4  # positions, and different values in them, under which a shift may be chance
ALIKE = 0.5  # of the distance of any two: neighbours in time; samples in random order come near 1
_IGNORED = -100  # cross_entropy's default ignore_index
Facts = dict[str, float | str | bool]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Call:
    """A captured call of a model whose inputs are data alone, by the names of its arguments."""

    model: nn.Module
    inputs: dict[str, Any]
    targets: list[Tensor]
    times: int = 1  # that the model is called in the step: once for each view of the samples
    as_it_is: bool = False  # a copy by itself, in which operations may have been exchanged: it is not copied again

    def tensors(self) -> list[Tensor]:
        return list(tensors(self.inputs))


def leakage(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "leakage/samples" and "leakage/positions", of the model as the training left it, in evaluation mode.

    Samples: all others of the batch become copies of the one that is looked at, whose output must stay. The dimension
    of the batch is the one along which the targets are counted. Positions: only where the targets are an input shifted
    by one (no arm otherwise); what comes after one is exchanged, and the outputs up to there must stay. Facts: "leaks", "share"
    (largest change over the largest output), "inside" (only what is made inside changes), "dimension", "size", and where the
    change is born "operation", "module", "file", "line", "text". An arm that cannot tell carries the reason.
    """
    try:
        with quiet():
            calls = list(_calls(step))
            shift = _shift(calls)
    except Exception as error:
        return {SAMPLES: _failed(SAMPLES, error)}
    arms = {SAMPLES: _arm(SAMPLES, lambda: _samples(recording, calls[0], shift))}
    if shift is not None and budget.left > 0:
        arms[POSITIONS] = _arm(POSITIONS, lambda: _positions(calls[0], shift))
    return arms


def _arm(name: str, ask: Callable[[], Facts]) -> Arm:
    began = time.perf_counter()
    try:
        with quiet():
            facts = ask()
    except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
        return _failed(name, error)
    return Arm(name, np.empty(0), time.perf_counter() - began, facts)


def _failed(name: str, error: Exception) -> Arm:
    return Arm(name, np.empty(0), failure=why_it_failed(error))


# --- the call --------------------------------------------------------------------------------------------------------


def _calls(step: TrainingStep) -> Iterator[_Call]:
    copies = step.copies()
    for iteration in step.iterations[:BATCHES]:
        backward = iteration.backwards[0]
        refuse_overwritten(backward)
        entry = _entry(backward)
        _, terms = watched_terms(copies, backward)
        times = sum(other.module is entry.module for other in backward.entries)
        yield _Call(_module(entry), _bound(entry), [t.target for t in terms if t.target is not None], times)


def _entry(backward: Backward) -> Entry:
    """The first call of a model that is given data, and nothing that was made from parameters."""
    for entry in backward.entries:
        found = entry.meanings()
        given = [item for item in found if isinstance(item, Constant) and item.tensor.dim() > 0]
        if entry.module is not None and given and not any(isinstance(item, Slot | Leaf) for item in found):
            return entry
    raise CannotReplayError("no model is called with data alone")


def _module(entry: Entry) -> nn.Module:
    assert entry.module is not None
    return entry.module


def _bound(entry: Entry) -> dict[str, Any]:
    args, kwargs = (rewrite(thing, _tensor) for thing in (entry.args, entry.kwargs))
    signature = inspect.signature(_module(entry).forward)
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        raise CannotReplayError("the model takes any number of arguments")
    bound = signature.bind(*args, **kwargs).arguments
    rest = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), "")
    return {**{k: v for k, v in bound.items() if k != rest}, **bound.get(rest, {})}


def _tensor(constant: Constant) -> Any:
    return constant.tensor.detach()


def samples_of(recording: Recording, copies: Copies, step: TrainingStep) -> bool:
    """Whether samples leak in these copies, as they are now. Raises as the arms do where it cannot be told."""
    calls = list(_calls(step))
    return bool(_samples(recording, _on(copies, calls[0]), _shift(calls))["leaks"])


def positions_of(copies: Copies, step: TrainingStep) -> bool:
    """Whether later positions leak in these copies, as they are now. Raises as the arms do where it cannot be told."""
    calls = list(_calls(step))
    shift = _shift(calls)
    if shift is None:
        raise MisuseError("the targets are not an input shifted by one")
    return bool(_positions(_on(copies, calls[0]), shift)["leaks"])


def _on(copies: Copies, call: _Call) -> _Call:
    return replace(call, model=copies.of(call.model), as_it_is=True)


# --- samples ---------------------------------------------------------------------------------------------------------


def _samples(recording: Recording, call: _Call, shift: _Shift | None) -> Facts:
    if recording.facts.get("several_optimizers"):
        raise CannotReplayError("models that play against each other may compare samples on purpose")
    _refuse_relations(call, shift)
    found = [_leak_along(call, *way) for way in _ways(call, _batch_dimensions(call, shift))]
    facts = min(
        found, key=lambda facts: float(facts["share"])
    )  # where several fit, any way that keeps samples apart will do
    says = (
        f"a sample's output changes by {100 * float(facts['share']):.2g} %" if facts["leaks"] else "samples stay apart"
    )
    return {**facts, "says": says}


def _refuse_relations(call: _Call, shift: _Shift | None) -> None:
    """Raise where samples are meant to know of each other (graphs), or normalise over the batch in evaluation as well."""
    sizes = {size for tensor in call.tensors() for size in tensor.shape[:2]}
    given, buffers = call.tensors(), list(call.model.buffers())
    if (
        shift is not None
    ):  # a sequence that predicts itself may be as long as the batch, as may its targets and causal mask
        shape = call.inputs[shift.name].shape
        given = [tensor for tensor in given if tensor.shape != shape and not _is_triangular(tensor)]
        buffers = [tensor for tensor in buffers if not _is_triangular(tensor)]
    held = [*given, *buffers]
    if any(t.layout is not torch.strided or (t.dim() >= 2 and t.shape[-1] == t.shape[-2] in sizes) for t in held):
        raise CannotReplayError("a square or sparse matrix may say how the samples are linked")
    if any(t.dim() == 2 and 2 in t.shape and not t.is_floating_point() and len(call.tensors()) > 1 for t in held):
        raise CannotReplayError("a list of pairs may say how the samples are linked")
    if any(isinstance(m, _BatchNorm) and m.running_mean is None for m in call.model.modules()):
        raise CannotReplayError("a BatchNorm without running statistics mixes the samples at all times")


def _batch_dimensions(call: _Call, shift: _Shift | None) -> list[int]:
    """The dimensions of the first input that may be the batch: along which the targets are counted."""
    first = call.tensors()[0]
    if shift is not None and first.dim() > 1:
        return [1 - shift.dimension]
    counts = {target.shape[0] for target in call.targets if target.dim() > 0}
    counts |= {count // call.times for count in counts if count % call.times == 0}
    found = [d for d in (0, 1) if d < first.dim() and first.shape[d] in counts]
    both = [t for t in call.targets if t.dim() > 1 and t.shape[:2] == first.shape[:2]]
    if found == [0] and both and _goes_on(first, 0) and not _goes_on(first, 1):  # a target for each time and sample
        found = [0, 1]
    if not found and first.dim() > 1 and first.shape[0] * first.shape[1] in counts:
        found = [0, 1]
    if not found or first.shape[found[0]] < 2:
        raise MisuseError("no dimension of the input is as long as the targets are many")
    return found


def _is_triangular(tensor: Tensor) -> bool:
    """Whether the last two dimensions hold what tells before from after, as a causal mask does: 0 and 1, or 0 and -Inf."""
    if tensor.layout is not torch.strided or tensor.dim() < 2 or tensor.shape[-1] != tensor.shape[-2]:
        return False
    before = torch.ones(tensor.shape[-2:], dtype=torch.bool, device=tensor.device).tril()
    kinds = [tensor[..., side].unique() for side in (before, ~before)]
    return all(len(kind) == 1 for kind in kinds) and not torch.equal(*kinds)


def _ways(call: _Call, dimensions: list[int]) -> list[tuple[int, int]]:
    """(dimension of the batch in the inputs, and in what has both dimensions of a sequence that is as long as the batch)."""
    first = call.tensors()[0]
    if first.dim() > 1 and first.shape[0] == first.shape[1]:
        return [(dimension, axis) for dimension in dimensions for axis in (0, 1)]
    return [(dimension, dimension) for dimension in dimensions]


def _goes_on(given: Tensor, dim: int) -> bool:
    """Whether neighbours along a dimension are much more alike than those half of it apart, as in time, and as samples are not."""
    rows, half = given.detach().movedim(dim, 0).flatten(1), given.shape[dim] // 2
    if len(rows) < LONG or not rows.is_floating_point():
        return False
    near, far = (rows[1:] - rows[:-1]).abs().mean(), (rows.roll(half, 0) - rows).abs().mean()
    return bool(near < ALIKE * far)


def _leak_along(call: _Call, dim: int, axis: int) -> Facts:
    size = int(call.tensors()[0].shape[dim])
    subject, worst, at = _subject(call), 0.0, Location()
    for kept in (0, size - 1):
        watched = partial(_one, kept=kept, dim=dim, size=size, axis=axis)
        one, other = _passes(subject, call, partial(alone, kept=kept, dim=dim, size=size), watched)
        share = _largest(one, other, watched)
        if share > worst:
            worst, at = share, first_difference(one, other)
    facts = _facts(worst, at, dim, size)
    if worst == 0.0:  # samples may be mixed inside all the same, where the output reads what is alike in all of them
        at = first_difference(one, other)
        facts |= {**_facts(0.0, at, dim, size), "inside": bool(at.operation)}
    return facts


def _one(tensor: Tensor, kept: int, dim: int, size: int, axis: int) -> Tensor | None:
    """The sample that is kept, which lies along `axis` where two leading dimensions are of that size; None where the dimension
    cannot be told (similarities of all with all)."""
    if tensor.dim() > 2 and tuple(tensor.shape[:2]) == (size, size) and size not in tensor.shape[2:]:
        return tensor.select(axis, kept)
    if tensor.dim() <= dim or tensor.shape[dim] != size or list(tensor.shape).count(size) > 1:
        return None
    return tensor.select(dim, kept)


# --- positions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shift:
    """The targets are the input `name` shifted by one along `dimension`."""

    name: str
    dimension: int


def _positions(call: _Call, shift: _Shift) -> Facts:
    given = call.inputs[shift.name]
    length, dim = int(given.shape[shift.dimension]), shift.dimension
    subject, worst, at = _subject(call), 0.0, Location()
    for last in sorted({0, length // 2 - 1, length - 2}):
        watched = partial(_early, last=last, length=length)
        changed = partial(_other_future, last=last, dim=dim, only=given)
        one, other = _passes(subject, call, changed, watched)
        share = _largest(one, other, watched)
        if share > worst:
            worst, at = share, first_difference(one, other)
    facts = _facts(worst, at, dim, length)
    says = (
        f"early outputs change by {100 * worst:.2g} % with later inputs"
        if facts["leaks"]
        else "no position sees later ones"
    )
    return {**facts, "says": says}


def _shift(calls: list[_Call]) -> _Shift | None:
    """The input that the targets are, one position on; None unless all of the first batches say the same."""
    common = set.intersection(*(set(_shifts(call)) for call in calls))
    return next(iter(common)) if len(common) == 1 else None


def _shifts(call: _Call) -> Iterator[_Shift]:
    for name, given in call.inputs.items():
        if not isinstance(given, Tensor) or given.dim() < 2 or given.dtype == torch.bool:
            continue
        for dim in (0, 1):
            if any(_is_next(given, target, dim) for target in call.targets):
                yield _Shift(name, dim)


def _is_next(given: Tensor, target: Tensor, dim: int) -> bool:
    """Whether the target at t is the input at t + 1; the last position is another's, or left out on both sides."""
    following = given.narrow(dim, 1, given.shape[dim] - 1)
    if given.shape[dim] < LONG or len(following.unique()) < LONG:
        return False
    if target.numel() == given.numel():
        whole = target.reshape(given.shape)
        early, same = whole.narrow(dim, 0, given.shape[dim] - 1), (whole == given).float().mean()
    elif target.numel() == following.numel():
        early, same = target.reshape(following.shape), torch.tensor(0.0)
    else:
        return False
    counted = early != _IGNORED
    agreeing = float((early == following)[counted].float().mean()) if bool(counted.any()) else 0.0
    return agreeing >= SHIFTED and float(counted.float().mean()) >= COPIED and float(same) < COPIED


def _other_future(tensor: Tensor, last: int, dim: int, only: Tensor) -> Tensor:
    return other_future(tensor, last, dim) if tensor is only else tensor


def _early(tensor: Tensor, last: int, length: int) -> Tensor | None:
    """The positions up to `last`, along whichever dimension: convolutions and attention have them along another one than
    the input. Where several are as long, what is early along all of them: of scores, the early keys of early queries."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size == length]
    for axis in axes:
        tensor = tensor.narrow(axis, 0, last + 1)
    return tensor if axes else None


class _AsItIs:
    """A copy that is asked as it stands, operations exchanged in it and all; outputs only."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def run(self, inputs: Any, keep: Kept) -> Pass:
        modes = [module.training for module in self._model.modules()]
        try:
            with torch.no_grad():
                returned = in_evaluation(self._model)(**inputs)
        finally:
            for module, mode in zip(self._model.modules(), modes, strict=True):
                module.training = mode
        return Pass((), tuple(t.detach() for t in tensors(returned) if t.is_floating_point()))


def _subject(call: _Call) -> Subject | _AsItIs:
    return _AsItIs(call.model) if call.as_it_is else Subject(call.model)


# --- both ------------------------------------------------------------------------------------------------------------


def _passes(subject: Subject | _AsItIs, call: _Call, change: Change, keep: Kept) -> tuple[Pass, Pass]:
    changed: Mapping[str, Any] = substitute(call.inputs, change)
    return subject.run(call.inputs, keep), subject.run(changed, keep)


def _largest(one: Pass, other: Pass, keep: Kept) -> float:
    pairs = [(keep(a), keep(b)) for a, b in zip(one.outputs, other.outputs, strict=True)]
    shares = [differ(a, b) for a, b in pairs if a is not None and b is not None]
    if not shares:
        raise MisuseError("the model's output has no such dimension, so nothing can be compared")
    return max(shares)


def _facts(share: float, at: Location, dim: int, size: int) -> Facts:
    facts: Facts = {"leaks": share > ROUNDING, "share": share, "dimension": float(dim), "size": float(size)}
    facts["verdict"] = "failed" if share > ROUNDING else "passed"
    facts |= {"operation": at.operation or "", "module": at.module or "", "file": at.file or ""}
    return facts | {"line": float(at.line or 0), "text": at.text}
