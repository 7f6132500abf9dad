"""What datasets hold in memory, as it was before the first access: who reads an item should leave it as it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from netdoctor.capture.source import is_user_file

MOST_BYTES = 64 << 20  # of all datasets together: copied once, in some hundredths of a second
_DATASETS, _BEGINS = 4, 3  # that are watched, and for so many beginnings of their loaders
_DEEP, _MANY = 5, 20_000  # levels of attributes and containers, and things looked at in all
_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})
Numbers: TypeAlias = "NDArray[Any]"


@dataclass(frozen=True, slots=True)
class Changed:
    """A dataset whose stored arrays are not what they were before it was read first; `before` is what they were, by path."""

    dataset: Any
    before: dict[str, Numbers]


@dataclass(slots=True)
class _Watched:
    dataset: weakref.ref[Any]
    before: dict[str, Numbers] | None
    begins: int = 1


class StoredData:
    """Watches the map-style datasets of loaders: copies what they hold when they are read first, and compares it later."""

    def __init__(self) -> None:
        self.changed: list[Changed] = []
        self._watched: list[_Watched] = []
        self._left = MOST_BYTES

    def begins(self, dataset: Any) -> None:
        """A loader begins to read a dataset."""
        found = None
        for watched in self._watched:
            if watched.dataset() is dataset:
                found = watched
                watched.begins += 1
            self._compare(watched)
            if watched.begins > _BEGINS:
                self._release(watched)
        if found is None and len(self._watched) < _DATASETS and _runs_user_code(dataset):
            self._watch(dataset)

    def close(self) -> None:
        """Compare for the last time, and let go of what was not changed."""
        for watched in self._watched:
            self._compare(watched)
            self._release(watched)

    def release(self) -> None:
        """Let go of everything."""
        self.changed, self._watched = [], []

    def _watch(self, dataset: Any) -> None:
        try:
            ref = weakref.ref(dataset)
        except TypeError:  # of a class that allows none
            return
        arrays = copied(dataset, self._left)
        if arrays:
            self._left -= sum(array.nbytes for array in arrays.values())
            self._watched.append(_Watched(ref, arrays))

    def _compare(self, watched: _Watched) -> None:
        dataset, before = watched.dataset(), watched.before
        if dataset is None or before is None:
            return
        now = copied(dataset, MOST_BYTES)
        if now.keys() == before.keys() and any(not same(now[path], was) for path, was in before.items()):
            self.changed.append(Changed(dataset, before))
            watched.before = None

    def _release(self, watched: _Watched) -> None:
        if watched.before is not None:
            self._left += sum(array.nbytes for array in watched.before.values())
            watched.before = None


def same(one: Numbers, other: Numbers) -> bool:
    """Whether two arrays hold the same; NaN is the same as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))


def stored(dataset: Any) -> dict[str, Numbers]:
    """The arrays and CPU tensors that a dataset holds in its attributes, also within lists, dictionaries, other datasets and
    objects of the user's, by their paths ("series", "parts[0].images"). They share the memory of what is held: for a copy of
    a dataset, since numpy keeps a tensor that it saw from being resized ever after."""
    return {path: array if isinstance(array, np.ndarray) else array.numpy() for path, array in _held(dataset)}


def copied(dataset: Any, most: int) -> dict[str, Numbers]:
    """Copies of the same; none where they are larger than `most` bytes."""
    held = list(_held(dataset))
    if sum(array.nbytes for _, array in held) > most:
        return {}
    with torch._C.DisableTorchFunction():  # a look of ours is no operation of the user's
        return {path: a.copy() if isinstance(a, np.ndarray) else a.clone().numpy() for path, a in held}


def _held(dataset: Any) -> Iterator[tuple[str, Numbers | Tensor]]:
    seen: set[int] = set()
    level: list[tuple[str, Any]] = [("", dataset)]
    for _ in range(_DEEP):
        below: list[tuple[str, Any]] = []
        for path, thing in level:
            if type(thing) in _PLAIN or id(thing) in seen or len(seen) > _MANY:
                continue
            seen.add(id(thing))
            if _is_written_to(thing):
                yield path.lstrip("."), thing
            else:
                below += [(path + step, part) for step, part in _parts(thing)]
        level = below


def _is_written_to(thing: Any) -> bool:
    """Whether it is an array or a tensor of numbers that can be changed in place."""
    if type(thing) is np.ndarray:
        return thing.dtype.kind in "biufc" and thing.size > 0 and thing.flags.writeable
    if type(thing) is not Tensor or thing.layout is not torch.strided or thing.device.type != "cpu":
        return False
    odd = thing.requires_grad or thing.is_quantized or thing.dtype is torch.bfloat16 or thing.is_conj()
    return not odd and thing.numel() > 0


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if type(thing) in (list, tuple):
        yield from ((f"[{number}]", part) for number, part in enumerate(thing[:_MANY]))
    elif type(thing) is dict:
        yield from ((f"[{key!r}]", part) for key, part in list(thing.items())[:_MANY] if type(key) in (str, int))
    elif (isinstance(thing, Dataset) or _is_users(type(thing))) and type(getattr(thing, "__dict__", None)) is dict:
        yield from ((f".{name}", part) for name, part in list(thing.__dict__.items()))


def _runs_user_code(dataset: Any) -> bool:
    """Whether the user's own code makes the items: of this dataset, or of one that it is a part of."""
    queue, seen = [dataset], 0
    while queue and seen < _MANY:
        thing, seen = queue.pop(), seen + 1
        if _is_users(type(thing)) and hasattr(type(thing), "__getitem__"):
            return True
        if isinstance(thing, Dataset):
            held = vars(thing).values()
            queue += [
                part for one in held for part in (one if type(one) is list else [one]) if isinstance(part, Dataset)
            ]
            # A function of the user's that a dataset of a library calls on its items.
            if any(_is_users(type(one)) or is_user_file(_file(one)) for one in held):
                return True
    return False


def _is_users(kind: type) -> bool:
    return any(is_user_file(_file(value)) for value in vars(kind).values() if hasattr(value, "__code__"))


def _file(function: Any) -> str:
    return str(getattr(getattr(function, "__code__", None), "co_filename", "<none>"))
