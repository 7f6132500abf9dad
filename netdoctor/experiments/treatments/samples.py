"""Treatments of samples, classes and columns: one label per input, rare classes weighed, dead columns left out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.functions import function_name, plain
from netdoctor.capture.step import Iteration
from netdoctor.capture.tape import Constant, Entry
from netdoctor.checks.data.conflicting_labels import ConflictingLabels
from netdoctor.experiments.loss_terms import BINARY_LOSSES, CLASS_LOSSES, DIFFERENCES, Term, watched_terms
from netdoctor.experiments.tiny_batch import batch_size, input_rows
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment, with_constants

MISSED = 50.0  # percent of the rare samples: class-imbalance asks for more than 90, and half is a long way from there
_COMPARING = CLASS_LOSSES | BINARY_LOSSES | DIFFERENCES | {"sub", "rsub"}
_PLACE = re.compile(r"(column|channel|feature) (\d+)$")
Pairs = list[tuple[list[bytes], Tensor]]  # per batch, what tells the inputs apart and the targets


# --- one label per input ---------------------------------------------------------------------------------------------


def clean_labels(case: Case) -> Treatment | None:
    """The commonest target of each input that comes with several, wherever the captured batches hold it."""
    pairs = list(_pairs(case.step.iterations))
    if not _contradicting(pairs):
        return None
    seen = _counted(pairs)
    cleaned = {id(targets): _commonest(keys, targets, seen) for keys, targets in pairs}

    def apply(bench: Bench) -> None:
        bench.rewrite(lambda entry: with_constants(entry, lambda tensor: cleaned.get(id(tensor), tensor)))

    def share(bench: Bench) -> float:
        held = list(_pairs(bench.iterations))
        return 100 * _contradicting(held) / max(1, sum(len(keys) for keys, _ in held))

    name = "samples with another label than most with the same input"
    return Treatment(apply, measure=Measure(name, share, 100 * ConflictingLabels.some, "%"))


def _pairs(iterations: list[Iteration]) -> Iterator[tuple[list[bytes], Tensor]]:
    """Inputs and targets of each batch whose loss compares with one constant tensor of a row per sample."""
    for iteration in iterations:
        size = batch_size(iteration, 0)
        rows = input_rows(iteration, size) if size > 1 else None
        targets = [
            tensor
            for entry in iteration.backwards[0].entries
            if entry.module is None and plain(entry.name) in _COMPARING
            for tensor in _constants(entry)
            if tensor.dim() > 0 and tensor.shape[0] == size
        ]
        if rows is not None and len(targets) == 1:
            yield [row.tobytes() for row in rows.cpu().numpy()], targets[0]


def _constants(entry: Entry) -> list[Tensor]:
    found = entry.meanings()
    return [item.tensor for item in found if isinstance(item, Constant)]


def _values(targets: Tensor) -> list[bytes]:
    rows = targets.detach().reshape(targets.shape[0], -1).double()
    return [row.tobytes() for row in rows.cpu().numpy()]


def _counted(pairs: Pairs) -> dict[bytes, Counter[bytes]]:
    seen: dict[bytes, Counter[bytes]] = defaultdict(Counter)
    for keys, targets in pairs:
        for key, value in zip(keys, _values(targets), strict=True):
            seen[key][value] += 1
    return seen


def _contradicting(pairs: Pairs) -> int:
    """How many samples have not the commonest target of their input."""
    return sum(values.total() - max(values.values()) for values in _counted(pairs).values())


def _commonest(keys: list[bytes], targets: Tensor, seen: dict[bytes, Counter[bytes]]) -> Tensor:
    """The targets with those that contradict most others replaced by what most say; the first met where it is a draw."""
    changed = targets.detach().clone()
    for number, (key, value) in enumerate(zip(keys, _values(targets), strict=True)):
        wanted = seen[key].most_common(1)[0][0]
        if wanted != value:
            row = torch.frombuffer(bytearray(wanted), dtype=torch.float64).reshape(targets.shape[1:])
            changed[number] = row.to(device=targets.device, dtype=targets.dtype)
    return changed


# --- rare classes ----------------------------------------------------------------------------------------------------


def class_weights(case: Case) -> Treatment | None:
    """Each class weighed by its rarity in the captured batches, as the fix's code does."""
    arm = case.recording.arms.get("final/evaluation")
    if (
        arm is None
        or "targets" not in arm.curves
        or case.recording.facts.get("loss_family") not in ("bce", "cross_entropy", "nll")
    ):
        return None
    counts = torch.as_tensor(arm.curves["targets"], dtype=torch.float64)
    weights = counts.sum() / (counts.numel() * counts.clamp_min(1))

    def weighed(func: Any, args: Any, kwargs: Any) -> Any:
        given = args[0] if args else kwargs["input"]
        weight = weights.to(given)
        if plain(function_name(func)) not in BINARY_LOSSES:
            return func(*args, **{**kwargs, "weight": weight})
        target = args[1] if len(args) > 1 else kwargs["target"]
        return func(*args, **{**kwargs, "weight": torch.where(target > 0.5, weight[1] / weight[0], 1.0)})

    def apply(bench: Bench) -> None:
        names = BINARY_LOSSES | {"cross_entropy", "nll_loss"}
        exchange_operations(bench, [Exchange(None, names, weighed)])

    measure = Measure("samples of rare classes that are missed", _missed, MISSED, "%", witness=False)
    return Treatment(apply, measure=measure)


@torch.no_grad()
def _missed(bench: Bench) -> float:
    """The percentage of the samples of all classes but the commonest that the copy, in evaluation mode, gives another class."""
    predicted, wanted = [], []
    for iteration in bench.iterations:
        backward = iteration.backwards[0]
        entries = [replace(entry, modes=(False,) * len(entry.modes)) for entry in backward.entries]
        with torch.enable_grad():  # terms are found along gradients
            _, terms = watched_terms(bench.sandbox.copies, replace(backward, entries=entries))
        for one, other in filter(None, map(_classes, terms[:1])):
            predicted.append(one)
            wanted.append(other)
    if not wanted:
        return float("nan")
    given, true = torch.cat(predicted), torch.cat(wanted)
    rare = true != true.mode().values
    return 100 * float((given != true)[rare].float().mean()) if bool(rare.any()) else float("nan")


def _classes(term: Term) -> tuple[Tensor, Tensor] | None:
    """(predicted, true) classes, each flat; None for a term that predicts none."""
    prediction, target = term.prediction, term.target
    if prediction is None or target is None:
        return None
    if term.name in BINARY_LOSSES:
        limit = 0.0 if term.name.endswith("logits") else 0.5
        return (prediction.reshape(-1) > limit).long(), target.reshape(-1).long()
    if term.name not in CLASS_LOSSES or target.is_floating_point() or prediction.dim() < 2:
        return None
    return prediction.argmax(1).reshape(-1), target.reshape(-1)


# --- columns that never vary -----------------------------------------------------------------------------------------


def drop_feature(case: Case) -> Treatment | None:
    """0 in place of the finding's constant columns: what a first layer without their weights would get."""
    numbers = [(found[1], int(found[2])) for place in case.finding.places if (found := _PLACE.match(place))]

    def columns(iteration: Iteration) -> Iterator[tuple[Tensor, int, int]]:
        for backward in iteration.backwards:
            for tensor in (t for entry in backward.entries if entry.module is not None for t in _constants(entry)):
                for kind, number in numbers:
                    axis = 1 if kind == "channel" else tensor.dim() - 1
                    if tensor.is_floating_point() and 0 < axis < tensor.dim() and number < tensor.shape[axis]:
                        yield tensor, axis, number

    def without(tensor: Tensor) -> Tensor:
        found = {(axis, number) for it in case.step.iterations for t, axis, number in columns(it) if t is tensor}
        changed = tensor.detach().clone() if found else tensor
        for axis, number in found:
            changed.select(axis, number).zero_()
        return changed

    def given(iterations: list[Iteration]) -> float:
        """How many of the columns still give the model a number that never varies."""
        values: dict[int, set[float]] = defaultdict(set)
        for iteration in iterations:
            for tensor, axis, number in columns(iteration):
                values[number].update(tensor.select(axis, number).unique().tolist())
        return float(sum(len(seen) == 1 and seen != {0.0} for seen in values.values()))

    def apply(bench: Bench) -> None:
        bench.rewrite(lambda entry: with_constants(entry, without) if entry.module is not None else entry)

    if not numbers or not given(case.step.iterations):
        return None  # columns of zeros: the weights of those have no say as it is
    name = "columns given to the model that tell nothing"
    return Treatment(apply, measure=Measure(name, lambda bench: given(bench.iterations), 0.0))


TREATMENTS: dict[str, Maker] = {
    "clean-labels": clean_labels,
    "class-weights": class_weights,
    "drop-feature": drop_feature,
}
