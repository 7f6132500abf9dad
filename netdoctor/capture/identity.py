"""Facts about objects, held weakly and told apart by identity: some modules hash and compare by what they contain."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByIdentity(Generic[K, V]):
    """A dictionary of objects that keeps none of them alive, and asks none of them for a hash."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref[K], V]] = {}

    def __setitem__(self, key: K, value: V) -> None:
        number, held = id(key), self._held

        def gone(ref: weakref.ref[K]) -> None:
            if number in held and held[number][0] is ref:
                del held[number]

        held[number] = (weakref.ref(key, gone), value)

    def __contains__(self, key: K) -> bool:
        found = self._held.get(id(key))
        return found is not None and found[0]() is key

    def get(self, key: K) -> V | None:
        """The value of this very object, or None."""
        found = self._held.get(id(key))
        return found[1] if found is not None and found[0]() is key else None

    def pop(self, key: K) -> None:
        """Forget an object."""
        if key in self:
            del self._held[id(key)]
