"""Does the same input come with different targets?"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture.step import Copies, Iteration, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Constant, Entry, walk
from netdoctor.errors import why_it_failed
from netdoctor.experiments.loss_terms import CLASSES, REGRESSION, watched_terms
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.tiny_batch import input_rows
from netdoctor.recording import Arm, Recording

NAME = "labels/conflicts"
FEW_COLUMNS, FEW_INPUTS, FEW_VALUES = (
    3,
    256,
    64,
)  # so few numbers, or rows made of so few values, come again by themselves


@dataclass(slots=True)
class _Seen:
    """Which targets came with each input, and where the pairs were met in the first batch."""

    targets: dict[bytes, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))
    first: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    within: int = 0  # samples that contradict another one of their own batch
    latest: dict[bytes, bytes] = field(default_factory=dict)  # the target that an input had in the last batch with it
    again: int = 0  # samples whose input was in an earlier batch
    moved: int = 0  # those that had another target then
    kind: str = ""
    columns: int = 0
    values: set[float] = field(default_factory=set)
    short: set[bytes] = field(
        default_factory=set
    )  # inputs that hold next to nothing: a history of one item, an empty one


def conflicts(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "labels/conflicts": inputs of the captured batches that came with more than one target.

    Facts: "kind" ("classes" or "regression"), "seen" (samples), "inputs" (different ones), "conflicting" (samples that
    have not the commonest target of their input: what any model must get wrong), "within" (the same, of single
    batches), "natural" (inputs so simple that they come again by themselves, as single ones with next to nothing but padding in
    them do, which are not counted), "samples" (indices in the first batch).
    No arm where a sample cannot be told from what else the model is given (states, graphs).
    """
    began = time.perf_counter()
    seen = _Seen()
    try:
        with quiet():
            copies = step.copies()
            for number, iteration in enumerate(step.iterations):
                if budget.left <= 0:
                    break
                pair = _pairs(iteration, copies, seen)
                if pair is None:
                    return {}
                _note(seen, *pair, first=number == 0)
    except Exception as error:
        return {NAME: Arm(NAME, np.empty(0), failure=why_it_failed(error))}
    return {NAME: Arm(NAME, np.empty(0), time.perf_counter() - began, _facts(seen))}


def _pairs(iteration: Iteration, copies: Copies, seen: _Seen) -> tuple[Tensor, Tensor] | None:
    """Inputs and targets of an iteration, one row per sample; None where there is no single target per sample."""
    backward = iteration.backwards[0]
    refuse_overwritten(backward)
    _, terms = watched_terms(copies, backward)
    known = [term for term in terms if term.target is not None and term.kind in (CLASSES, REGRESSION)]
    if len(known) != 1 or known[0].target is None:
        return None
    size = int(known[0].target.shape[0]) if known[0].target.dim() else 0
    found: list[Constant] = []
    entry = backward.entries[0]
    walk((entry.args, entry.kwargs), lambda item: found.append(item) if isinstance(item, Constant) else None)
    alone = all(c.tensor.numel() == 1 or (c.tensor.dim() > 0 and c.tensor.shape[0] == size) for c in found)
    whole = alone and entry.module is not None and not any(map(_given_more, backward.entries[1:]))
    rows = input_rows(iteration, size) if size > 1 and whole else None
    if rows is None:
        return None
    target = known[0].target.reshape(size, -1).double()
    if target.shape[1] == 1 and sorted(target[:, 0].tolist()) == list(range(size)):
        return None  # places in the batch, as contrastive losses have them
    seen.kind, seen.columns = known[0].kind, int(rows.shape[1])
    return rows, target


def _given_more(entry: Entry) -> bool:
    """Whether a later call of a model has inputs of its own, as that for the second one of a pair."""
    given = entry.meanings() if entry.module is not None else []
    return any(isinstance(item, Constant) and item.tensor.dim() > 1 for item in given)


def _note(seen: _Seen, rows: Tensor, targets: Tensor, first: bool) -> None:
    if len(seen.values) <= FEW_VALUES:
        seen.values.update(rows.unique().tolist()[: FEW_VALUES + 1])
    here: dict[bytes, Counter[bytes]] = defaultdict(Counter)
    for index, (row, target) in enumerate(zip(rows.cpu().numpy(), targets.cpu().numpy(), strict=True)):
        key, value = row.tobytes(), target.tobytes()
        if key not in seen.targets and _short(row):
            seen.short.add(key)
        seen.targets[key][value] += 1
        here[key][value] += 1
        if key in seen.latest:
            seen.again += 1
            seen.moved += seen.latest[key] != value
        if first:
            seen.first[key].append(index)
    seen.within += sum(map(_wrong, here.values()))
    seen.latest |= {key: values.most_common(1)[0][0] for key, values in here.items()}


def _short(row: NDArray[Any]) -> bool:
    """Whether a row of ids has fewer than `FEW_COLUMNS` entries beside its padding: others like it come by themselves."""
    if row.size <= 2 * FEW_COLUMNS or not (row == np.rint(row)).all():
        return False
    return row.size - int(np.unique(row, return_counts=True)[1].max()) < FEW_COLUMNS


def _wrong(targets: Counter[bytes]) -> int:
    """How many have not the commonest target."""
    return targets.total() - max(targets.values())


def _facts(seen: _Seen) -> dict[str, float | str | bool]:
    conflicting = [key for key, values in seen.targets.items() if len(values) > 1 and key not in seen.short]
    total = sum(values.total() for values in seen.targets.values())
    number = sum(_wrong(seen.targets[key]) for key in conflicting)
    there = sorted(index for key in conflicting for index in seen.first.get(key, ()))
    simple = seen.columns < FEW_COLUMNS or (len(seen.values) <= FEW_VALUES and len(seen.targets) <= FEW_INPUTS)
    return {
        "kind": seen.kind,
        "seen": float(total),
        "inputs": float(len(seen.targets)),
        "conflicting": float(number),
        "within": float(seen.within),
        "again": float(seen.again),
        "moved": float(seen.moved),
        "chance": 1 - sum(count**2 for count in sum(seen.targets.values(), Counter()).values()) / max(1, total) ** 2,
        "natural": simple,
        "samples": ",".join(map(str, there[:16])),
        "says": f"{number} of {total} samples contradict others with the same input"
        if number
        else "no input has two targets",
    }
