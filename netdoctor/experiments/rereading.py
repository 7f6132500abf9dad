"""Does what a dataset gives for an index depend on what was read before? Only of datasets whose stored arrays were written to."""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from netdoctor.capture.step import TrainingStep
from netdoctor.capture.stored import Changed, Numbers, same, stored
from netdoctor.capture.tree import tensors
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.writing_line import WritingLine, writing_line
from netdoctor.recording import Arm

NAME = "data/read again"
INDICES = 5  # that are looked at, from all over the dataset
ROUNDS = 5  # of reading between two looks at an item, in each of which it and its neighbours are read
NEAR = (1, -1, 0, 2, -2, 3, -3, 0)  # read in each round: windows of a series overlap
TRIES = 6  # random states under which an access may write: some augmentations happen now and then
_SEED = 1
_WRAPPED = re.compile(r"^(?:datasets?(?:\[\d+\])?\.)+")  # attributes of torch's own datasets around the user's


@dataclass(slots=True)
class _Course:
    """What one index gave, under the same random state, before and after each round of reading; and what one access changes."""

    index: int
    looks: list[NDArray[np.float64]]
    seed: int = _SEED  # under which one access changes
    written: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # path → flat positions that one access changes

    @property
    def change(self) -> float:
        """By how much it is another at most (`share`)."""
        return max(share(self.looks[0], look) for look in self.looks)

    @property
    def moves(self) -> int:
        """After how many rounds it was another than before the round. A cache that is filled on first access: once."""
        return sum(share(one, other) > 0 for one, other in zip(self.looks, self.looks[1:], strict=False))

    @property
    def returns(self) -> bool:
        """Whether it came back to what it was, as an image that is mirrored in place does."""
        moved = [share(self.looks[0], look) > 0 for look in self.looks[1:]]
        return True in moved and False in moved[moved.index(True) :]


def look(step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "data/read again". Facts: "change" (the item after up to `ROUNDS` rounds of reading, beside its first reading under
    the same random state and with the same attributes but for the stored arrays: root mean square of the difference over that of
    the values), "rounds" (in how many it changed), "returns", "local" (more than one index changes anything),
    "numbers" (that an access changes, and not every access, at least), "dataset" (its class), "stored" (path of
    the array), "index", and of the writing "file", "line", "text", "function", and of the line to be mended "mend_line",
    "mend_text", "name", "tensor" where they were found.
    """
    began, arm = time.perf_counter(), None
    for changed in step.changed:
        try:
            with quiet():
                facts = _facts(changed, budget)
            arm = Arm(NAME, np.empty(0), time.perf_counter() - began, facts) if facts else None
        except Exception as error:
            arm = Arm(NAME, np.empty(0), failure=why_it_failed(error))
        if arm is not None and not arm.failure and float(arm.facts["change"]) > 0:
            break
    return {} if arm is None else {NAME: arm}


def _facts(changed: Changed, budget: Budget) -> dict[str, float | str | bool]:
    count = len(changed.dataset)
    places = [int(share * (count - 1)) for share in np.linspace(0.1, 0.9, INDICES)]
    courses: list[_Course] = []
    for index in dict.fromkeys(places):
        if budget.left <= 0:
            break
        course = _course(changed, index, count)
        if course.written:
            courses.append(course)
    if not courses:
        return {}
    course = _typical(courses)
    change, index = course.change, course.index
    own = _own_places(courses)
    path = max(course.written, key=lambda at: len(course.written[at]))
    facts: dict[str, float | str | bool] = {
        "change": change,
        "rounds": float(course.moves),
        "returns": course.returns,
        "local": len(own) > 1,
        "numbers": float(min(map(len, own))),
        "dataset": type(_inner(changed.dataset)).__name__,
        "stored": _WRAPPED.sub("", path),
        "index": float(index),
        "says": f"item {index} changes by {100 * change:.3g} % when it is read again",
    }
    line = _line(changed, course, path)
    return {**facts, **({} if line is None else line.facts())}


def _typical(courses: list[_Course]) -> _Course:
    """The one with the middle change, of those that more than one round changed where there are any."""
    moving = [course for course in courses if course.moves > 1] or courses
    return sorted(moving, key=lambda course: course.change)[len(moving) // 2]


def _own_places(courses: list[_Course]) -> list[set[tuple[str, int]]]:
    """What an access to each index changes, but for what an access to any index does: a state of the dataset as a whole."""
    found = [{(path, int(at)) for path, places in c.written.items() for at in places} for c in courses]
    common = found[0].intersection(*found[1:]) if len(found) > 1 else set[tuple[str, int]]()
    return [one - common for one in found]


def _inner(dataset: Any) -> Any:
    """The dataset within those of torch that take a part of it or put several together."""
    for _ in range(4):
        parts = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
        if not type(dataset).__module__.startswith("torch.") or parts[0] is None:
            break
        dataset = parts[0]
    return dataset


def _course(changed: Changed, index: int, count: int) -> _Course:
    arrays, course = changed.before, _Course(index, [])
    course.looks.append(_item(_fresh(changed, arrays), index, _SEED))
    for seed in range(_SEED + 1, _SEED + 1 + TRIES):
        used = _fresh(changed, arrays)
        _item(used, index, seed)
        written = {path: at for path, now in stored(used).items() if len(at := _differing(arrays[path], now))}
        if sum(map(len, written.values())) > sum(map(len, course.written.values())):
            course.written, course.seed = written, seed
        if sum(map(len, course.written.values())) > 1:
            break
    if not course.written:
        return course
    for number in range(ROUNDS):
        used = _fresh(changed, arrays)
        for turn, offset in enumerate(NEAR):
            _item(used, min(max(index + offset, 0), count - 1), 100 * (number + 1) + turn)
        arrays = {path: array.copy() for path, array in stored(used).items()}
        course.looks.append(_item(_fresh(changed, arrays), index, _SEED))
    return course


def _fresh(changed: Changed, arrays: dict[str, Numbers]) -> Any:
    """A copy of the dataset that holds these arrays; all else is as it was left by the training."""
    made = copy.deepcopy(changed.dataset)
    for path, array in stored(made).items():
        array[...] = arrays[path]
    return made


def _item(dataset: Any, index: int, seed: int) -> NDArray[np.float64]:
    """The numbers of an item as one row, read under this random state."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    rows = [np.asarray(value, np.float64).ravel() for value in _values(dataset[index])]
    return np.concatenate(rows) if rows else np.empty(0)


def _values(item: Any) -> Iterator[Any]:
    if isinstance(item, dict):
        item = list(item.values())
    for part in item if isinstance(item, list | tuple) else [item]:
        if isinstance(part, list | tuple | dict):
            yield from _values(part)
        elif isinstance(part, int | float | np.number) or (isinstance(part, np.ndarray) and part.dtype.kind in "biuf"):
            yield part
        else:
            yield from (tensor.detach().cpu().double().numpy().copy() for tensor in tensors(part))


def _differing(one: Numbers, other: Numbers) -> NDArray[np.int64]:
    if same(one, other):
        return np.empty(0, np.int64)
    equal = (one == other) | ((one != one) & (other != other))
    return np.flatnonzero(~equal)


def share(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Root mean square of a difference over that of `one`; 1 where it cannot be told, as where sizes or NaNs differ."""
    if one.shape != other.shape:
        return 1.0
    if np.array_equal(one, other, equal_nan=True):
        return 0.0
    with np.errstate(all="ignore"):
        found = float(np.sqrt(np.mean((one - other) ** 2)) / max(np.sqrt(np.mean(one**2)), 1e-12))
    return min(found, 1e6) if np.isfinite(found) else 1.0


def _line(changed: Changed, course: _Course, path: str) -> WritingLine | None:
    made, at = _fresh(changed, changed.before), course.written[path]
    array = stored(made)[path]
    few = np.unravel_index(at[:: max(1, len(at) // 64)], array.shape)
    return writing_line(lambda: _item(made, course.index, course.seed), lambda: array[few].tobytes())
